"""Docstrings as mkdocstrings wants them: ``Example:`` as a section of code, roles of Sphinx as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

__all__ = ["Docstrings"]


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every object that was read."""
        if obj.docstring is not None:
            text = re.sub(r"(?m)^(\s*)Example:$", r"\1Examples:", obj.docstring.value)
            obj.docstring.value = re.sub(r":\w+:`~?([^`]+)`", r"``\1``", text)
