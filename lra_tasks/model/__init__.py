"""The encoder and its mixers."""
