"""Fused distillation losses: one signature per op, several backends behind it."""
