"""Eigenvalues from products: Krylov spaces and where they start."""
