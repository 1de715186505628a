"""Benchmarks: what a measurement costs, and what the same number costs elsewhere; `make bench` runs both."""
