"""Implementations that no device has timed yet; their names may change."""
