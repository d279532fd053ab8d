"""The `lra` command."""
