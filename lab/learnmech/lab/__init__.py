"""Small real trainings in which published laws can be seen, and the `learnmech demo` that shows them."""
