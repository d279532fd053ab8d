"""Sources of examples: builders, archives, downloads."""
