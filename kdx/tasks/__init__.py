"""Tasks: what models are trained and judged for."""
