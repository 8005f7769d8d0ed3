"""Quantised students and teachers for kdx."""
