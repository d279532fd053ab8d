"""ListOps."""
