"""Models that a file of a run names, held to the rule of trust."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kdx.errors import TrustError
from kdx.own_files import OwnFiles, is_own
from kdx.ref import Ref

__all__ = ["told_model"]


def told_model(model: Ref, stage: str, files: OwnFiles | None) -> Ref:
    """A model as ``model.json`` or ``result.json`` names it: of Python files it may name those of the recipe alone.

    Args:
        model: with its options.
        stage: that it is of.
        files: those that the recipe may name; None: none.

    Raises:
        TrustError: it names another file.
    """
    for name in filter(is_own, _texts(model.as_dict())):
        if files is None or not files.runs(name):
            raise TrustError(
                f"stage {stage!r}: the run's files say that its model is {name!r}, and the recipe names no such file, "
                "so it is not run; remove the folder of the stage, which is then run again, or allow it with --trust "
                "FILE.py (trust= in Python) if you know what it does"
            )
    return model


def _texts(value: Any) -> Iterator[str]:
    """All texts in plain values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)
