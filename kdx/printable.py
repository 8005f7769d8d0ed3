"""Text that a terminal shows and does not obey."""

from __future__ import annotations

import re

__all__ = ["CONTROL", "printable"]

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters but tab and line feed, and those that turn the direction of writing."""


def printable(text: str) -> str:
    r"""A text whose control characters are written out, so that it moves no cursor and hides nothing.

    Example:
        >>> print(printable("kd\x1b[2J"))
        kd\x1b[2J
    """
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)
