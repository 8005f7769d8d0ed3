"""Function matching for kdx."""
