"""What the commands print as JSON."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

__all__ = ["Json", "print_json"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_json(value: Any) -> None:
    """Prints a value; what JSON does not know becomes text."""
    typer.echo(json.dumps(value, indent=2, default=str))
