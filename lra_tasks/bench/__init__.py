"""Benchmarks: cost of attention and of a training step, and the rate of the data."""
