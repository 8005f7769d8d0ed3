"""Early-stopped teachers for kdx."""
