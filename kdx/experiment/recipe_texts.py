"""The texts in a recipe: they refer to other keys alone, and hold nothing that a terminal would obey."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdx.errors import RecipeError, TrustError
from kdx.printable import CONTROL, printable
from kdx.trust import ENVIRONMENT, Rule

__all__ = ["check_interpolation", "check_printable"]

_NAME = re.compile(r"\s*([\w.]*)\s*:")


def check_interpolation(values: Any, where: str, rule: Rule) -> None:
    """Checks that the texts of a recipe, or of what overrides it, refer to its own keys alone.

    A resolver, as OmegaConf calls ``${name:...}``, runs a function: one of OmegaConf's, among them one that reads
    environment variables, or one that a program has registered, and ``eval`` is a popular one. What a recipe resolves
    to is written into its run and the report, a secret of the environment too.

    Args:
        values: plain values, references in them not resolved.
        where: how messages name what is checked.
        rule: says whether environment variables may be read.

    Raises:
        TrustError: a text has a resolver; key and text are named.
    """
    for key, text in _texts(values):
        for name in _resolvers(text):
            if name == ENVIRONMENT and not rule.environment:
                raise TrustError(
                    f"{where}: {key}: {text!r} would copy an environment variable into the run and its report; if that "
                    f"is wanted, allow it with --trust {ENVIRONMENT} (trust={ENVIRONMENT!r} in Python), else write the "
                    "value itself"
                )
            if name != ENVIRONMENT:
                raise TrustError(
                    f"{where}: {key}: {text!r} would run a function of OmegaConf; a recipe refers to its own keys "
                    "alone, as in ${train.epochs}: write the value itself"
                )


def check_printable(values: Any, where: str) -> None:
    """Checks that no key and no text has control characters: names in a recipe are printed and stand in reports.

    Args:
        values: plain values.
        where: how messages name what is checked.

    Raises:
        RecipeError: one has; it is named.
    """
    for key, text in _texts(values):
        if found := CONTROL.search(text):
            raise RecipeError(
                f"{where}: {printable(key)}: {printable(text)!r} has the control character {found[0]!a}, which a "
                "terminal obeys instead of showing it; remove it"
            )


def _texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text and every key in plain values, after its place."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            below = f"{path}.{key}" if path else str(key)
            yield below, str(key)
            yield from _texts(item, below)
    elif isinstance(value, Sequence):
        for place, item in enumerate(value):
            yield from _texts(item, f"{path}.{place}" if path else str(place))


def _resolvers(text: str) -> list[str]:
    """The names before the first colon within every ``${...}``; "" for one that is itself a reference."""
    found: list[str] = []
    opened: list[int | None] = []  # where what is open begins, None after its colon
    for match in re.finditer(r"\$\{|[}:]", text):
        if match[0] == "${":
            opened.append(match.end())
        elif match[0] == "}":
            opened = opened[:-1]
        elif opened and (start := opened[-1]) is not None:
            name = _NAME.match(text, start)
            found.append(name[1] if name and name.end() == match.end() else "")
            opened[-1] = None
    return found
