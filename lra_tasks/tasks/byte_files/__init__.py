"""Bytes: files of the user's own."""
