"""Layouts: the meaning of a feature's axes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from kdx.errors import nearest

__all__ = ["AXES", "Axes", "Layout", "UnknownLayout", "layout_from_json", "layout_to_json"]

Axes = Literal["nc", "ncl", "nlc", "lnc", "nchw", "nhwc", "ncdhw", "ndhwc"]
"""The meaning of every axis in order: n samples, c channels, l places or tokens, d frames, h rows, w columns."""

AXES: tuple[Axes, ...] = get_args(Axes)


@dataclass(frozen=True)
class Layout:
    """The meaning of a feature's axes, and of tokens the places where they lie.

    A vision transformer puts its tokens in this order: class tokens, registers, then the patches of the grid, row by
    row (DINOv2 with registers, https://arxiv.org/abs/2309.16588, does so too).

    Args:
        axes: ``"nc"`` vectors; ``"ncl"`` what Conv1d gives; ``"nlc"`` tokens, ``"lnc"`` those of a module with
            ``batch_first=False``; ``"nchw"`` maps; ``"nhwc"`` maps with the channels last; ``"ncdhw"``, ``"ndhwc"``
            video.
        grid: places along each axis of the grid that tokens lie on, as ``(9, 16)``; None if nobody said.
        class_token: number of class tokens before the grid; None if nobody said.
        registers: number of tokens between the class tokens and the grid; None if nobody said.

    Raises:
        ValueError: axes that do not exist, numbers out of range, or a grid for a feature that has no tokens.

    Example:
        >>> Layout("nlc", grid=(9, 16), class_token=1).number
        145
    """

    axes: Axes
    grid: tuple[int, ...] | None = None
    class_token: int | None = None
    registers: int | None = None

    def __post_init__(self) -> None:
        check_axes(self.axes)
        if self.grid is not None:
            object.__setattr__(self, "grid", check_grid(self.grid))
        for name in ("class_token", "registers"):
            check_number(name, getattr(self, name))
        if not self.tokens and (self.grid, self.class_token, self.registers) != (None, None, None):
            raise ValueError(
                f"grid, class_token and registers are about tokens, 'nlc' or 'lnc', not about {self.axes!r}; leave "
                "them out"
            )

    @property
    def tokens(self) -> bool:
        """Whether the feature is a row of tokens."""
        return self.axes in ("nlc", "lnc")

    @property
    def extra(self) -> int | None:
        """Number of tokens before the grid; None if nobody said."""
        if self.class_token is None and self.registers is None:
            return None
        return (self.class_token or 0) + (self.registers or 0)

    @property
    def number(self) -> int | None:
        """Number of tokens that the grid and the tokens before it make; None without a grid."""
        return None if self.grid is None else math.prod(self.grid) + (self.extra or 0)


@dataclass(frozen=True)
class UnknownLayout:
    """Stands for the layout of a tensor of which nobody knows what its axes mean.

    Args:
        giver: what gave the tensor, as a message names it.
        batch_first: False where the model works on ``[L, N, C]``, so that even the first axis is open.
    """

    giver: str
    batch_first: bool = True


def check_axes(axes: Any) -> None:
    """Raises a ValueError unless these axes exist."""
    if axes not in AXES:
        raise ValueError(f"layout: there is no {axes!r}; {nearest(str(axes), AXES)}")


def check_grid(grid: Any) -> tuple[int, ...]:
    """A grid as a tuple of one to three positive numbers.

    Raises:
        ValueError: it is none.
    """
    found = tuple(grid) if isinstance(grid, tuple | list) else ()
    if not 1 <= len(found) <= 3 or any(
        not isinstance(side, int) or isinstance(side, bool) or side < 1 for side in found
    ):
        raise ValueError(f"grid: expected one to three positive numbers, as (9, 16) for 9 rows of 16, got {grid!r}")
    return found


def check_number(name: str, value: Any) -> None:
    """Raises a ValueError unless the number of tokens is None or a whole number from 0."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise ValueError(f"{name}: expected a number of tokens, 0 or more, got {value!r}")


def layout_to_json(layout: Layout | UnknownLayout) -> dict[str, Any]:
    """Plain values of a layout, for a file."""
    return asdict(layout)


def layout_from_json(values: Mapping[str, Any]) -> Layout | UnknownLayout:
    """The layout that :func:`layout_to_json` wrote."""
    if "axes" not in values:
        return UnknownLayout(**values)
    grid = values.get("grid")
    return Layout(**{**values, "grid": None if grid is None else tuple(grid)})
