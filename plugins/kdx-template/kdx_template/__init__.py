"""A kdx plugin to copy."""
