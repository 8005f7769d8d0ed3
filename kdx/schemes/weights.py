"""Weights of loss terms that change during training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from kdx.ranges import check_number, check_whole

__all__ = ["Balanced", "Cosine", "Warmup", "Weight", "never_weighs"]


@dataclass(frozen=True, slots=True)
class Warmup:
    """Linear from ``start`` to ``to`` over the first ``steps`` optimizer steps, constant afterwards.

    Args:
        to: the weight that is reached, >= 0.
        steps: optimizer steps until then, >= 1.
        start: the weight at step 0, >= 0.
        kind: how a recipe tells the schedules apart.
    """

    to: float
    steps: int
    start: float = 0.0
    kind: Literal["warmup"] = "warmup"

    def __post_init__(self) -> None:
        check_number("to", self.to, least=0)
        check_number("start", self.start, least=0)
        check_whole("steps", self.steps, least=1)

    def at(self, step: int, total: int) -> float:  # schedules share one signature
        """The weight of optimizer step ``step`` (from 0)."""
        return self.start + (self.to - self.start) * min(step / self.steps, 1.0)


@dataclass(frozen=True, slots=True)
class Cosine:
    """Half a cosine from ``start`` at step 0 to ``to`` at the end of the run.

    Args:
        start: the weight at step 0, >= 0.
        to: the weight at the last step, >= 0.
        kind: how a recipe tells the schedules apart.
    """

    start: float
    to: float = 0.0
    kind: Literal["cosine"] = "cosine"

    def __post_init__(self) -> None:
        check_number("start", self.start, least=0)
        check_number("to", self.to, least=0)

    def at(self, step: int, total: int) -> float:
        """The weight of optimizer step ``step`` (from 0) of ``total``."""
        return self.to + (self.start - self.to) * (1 + math.cos(math.pi * step / max(total - 1, 1))) / 2


@dataclass(frozen=True, slots=True)
class Balanced:
    """Set so that the term's gradient on the student is ``ratio`` times that of the task loss.

    Measured every ``every`` optimizer steps by :func:`kdx.fit` and smoothed; the weight in force is logged as
    ``weight/<term>`` and is part of the checkpoint. Before the first measurement it is ``start``.

    Args:
        ratio: wanted norm of the weighted term's gradient over that of the weighted task loss, > 0.
        every: optimizer steps between measurements; each costs one more backward pass a term.
        momentum: share of the old weight that a measurement keeps, in [0, 1).
        start: the weight until the first measurement.
        kind: how a recipe tells the schedules apart.
    """

    ratio: float = 1.0
    every: int = 50
    momentum: float = 0.9
    start: float = 1.0
    kind: Literal["balanced"] = "balanced"

    def __post_init__(self) -> None:
        check_number("ratio", self.ratio, above=0)
        check_whole("every", self.every, least=1)
        check_number("momentum", self.momentum, least=0, below=1)
        check_number("start", self.start, above=0)


Weight = float | Warmup | Cosine | Balanced
"""The weight of a term: a number of at least 0, or one of the schedules of this module."""


def never_weighs(weight: Weight) -> bool:
    """Whether a weight is 0 in every step.

    Example:
        >>> never_weighs(0.0), never_weighs(Warmup(to=1.0, steps=10))
        (True, False)
    """
    if isinstance(weight, float):
        return weight == 0
    return isinstance(weight, Warmup | Cosine) and weight.start == weight.to == 0
