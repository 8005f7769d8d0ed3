"""Bit widths by name: ``int8``, ``int4``, ``w4a8`` and their like."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict

from kdx.errors import StudentError, nearest

__all__ = ["NAMES", "Widths", "read_widths"]

_FORM = re.compile(r"w([2-8])(?:a([2-8])(-dynamic)?)?")
NAMES = {
    "int8": "w8a8",
    "int8-dynamic": "w8a8-dynamic",
    "int8-int4": "w4a8",
    "int8-int4-dynamic": "w4a8-dynamic",
    "int8-weights": "w8",
    "int4": "w4a4",
    "int4-weights": "w4",
}
"""Usual names: int8 activations and int4 weights are ``int8-int4``; ``-weights`` leaves the activations alone."""


class Widths(BaseModel):
    """The bit widths of a layer.

    Args:
        weights: bits of a weight, 2 to 8.
        activations: bits of what the layer takes; None leaves it alone.
        dynamic: whether the range of what it takes is that of every row by itself, rather than one that is learned or
            averaged in training.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: int
    activations: int | None = None
    dynamic: bool = False

    def at_least(self, bits: int) -> Widths:
        """These widths, none below ``bits``."""
        activations = None if self.activations is None else max(bits, self.activations)
        return Widths(weights=max(bits, self.weights), activations=activations, dynamic=self.dynamic)


def read_widths(to: Any) -> Widths:
    """The widths that a name stands for.

    Args:
        to: one of :data:`NAMES`, or ``w<bits>`` (weights alone), ``w<bits>a<bits>``, ``w<bits>a<bits>-dynamic``, the
            bits from 2 to 8.

    Raises:
        StudentError: it is neither.

    Example:
        >>> read_widths("int8-int4")
        Widths(weights=4, activations=8, dynamic=False)
    """
    form = _FORM.fullmatch(NAMES.get(str(to), str(to)))
    if form is None:
        raise StudentError(
            f"to: expected {', '.join(NAMES)}, or bits from 2 to 8 as w4, w4a8 or w4a8-dynamic; got {to!r}; "
            f"{nearest(str(to), NAMES)}"
        )
    weights, activations, dynamic = form.groups()
    return Widths(weights=int(weights), activations=int(activations) if activations else None, dynamic=bool(dynamic))
