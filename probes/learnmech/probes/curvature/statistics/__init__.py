"""Statistics of the whole spectrum: trace, Frobenius norm, density."""
