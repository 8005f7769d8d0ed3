"""Items of nested results, named by a path such as ``[1][0]`` or ``['0']``."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["ITEMS", "item_of", "keys_of"]

ITEMS = r"(?:\[[^\[\]]+\])+"
"""Matches a path of items."""


def keys_of(path: str) -> tuple[str | int, ...]:
    """The keys and numbers of a path.

    Example:
        >>> keys_of("[detect][1]['0']")
        ('detect', 1, '0')
    """
    keys: list[str | int] = []
    for text in re.findall(r"\[([^\[\]]+)\]", path):
        quoted = text[0] == text[-1] and text[0] in "'\"" and len(text) > 2
        keys.append(text[1:-1] if quoted else int(text) if text.isdigit() else text)
    return tuple(keys)


def item_of(value: Any, path: str) -> Any:
    """One part of a nested result.

    Args:
        value: tuples, lists, mappings, and objects with attributes, nested.
        path: ``[1]`` is a number, ``['1']`` and ``[name]`` are keys, or public attributes of what has no keys.

    Raises:
        KeyError: there is no such part; the message says what there is.

    Example:
        >>> item_of({"detect": (0, [7, 8])}, "[detect][1][0]")
        7
    """
    found = value
    for key in keys_of(path):
        try:
            found = found[key]
        except (KeyError, IndexError, TypeError) as error:
            if isinstance(key, str) and not key.startswith("_") and hasattr(found, key):
                found = getattr(found, key)
                continue
            keys = f" with keys {list(found)}" if hasattr(found, "keys") else ""
            raise KeyError(f"{type(found).__name__}{keys} without item {key!r}") from error
    return found
