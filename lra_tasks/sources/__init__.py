"""Where the examples of a dataset come from."""
