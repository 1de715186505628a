"""Sources of the contributions that a gradient is summed from, and what is made of them."""
