"""Finished runs as tables and pictures."""
