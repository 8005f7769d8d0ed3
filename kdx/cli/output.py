"""Options that several commands have, ``--json`` and ``--trust``, and their JSON output."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

__all__ = ["Json", "Trust", "print_json"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Trust = Annotated[
    list[str] | None,
    typer.Option(
        "--trust",
        metavar="MODULE|FILE.py",
        help="A module beside kdx and its plugins, or a file that is not in the recipe's folder, that may be named and "
        "is then run; repeat it for several. oc.env allows environment variables in a recipe.",
    ),
]


def print_json(value: Any) -> None:
    """Prints a value as JSON; types that JSON does not know become text."""
    typer.echo(json.dumps(value, indent=2, default=str))
