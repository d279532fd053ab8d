"""Prepared datasets: made, checked, opened, batched."""
