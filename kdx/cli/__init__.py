"""The command line, ``kdx``."""

from kdx.cli.app import app, main

__all__ = ["app", "main"]
