"""Model: the encoder and its mixers."""
