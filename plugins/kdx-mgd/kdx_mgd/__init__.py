"""Masked generative distillation for kdx."""
