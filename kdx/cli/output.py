"""The JSON output of the commands."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

__all__ = ["Json", "print_json"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_json(value: Any) -> None:
    """Prints a value as JSON; types that JSON does not know become text."""
    typer.echo(json.dumps(value, indent=2, default=str))
