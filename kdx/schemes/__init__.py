"""Schemes: who teaches whom, and what each term weighs."""
