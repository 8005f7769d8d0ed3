"""Ends a run whose losses are not finite."""

from __future__ import annotations

import math

from torch import Tensor

from kdx.errors import KdxError
from kdx.losses import Losses

__all__ = ["Finite"]


class Finite:
    """Detects a loss that is not finite, without a device sync in every step."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._terms: dict[str, Tensor] = {}

    def add(self, losses: Losses, step: int, *, check: bool) -> None:
        """Takes the losses of a step; ``check`` reads them at once."""
        self._sum = losses.total if self._sum is None else self._sum + losses.total
        self._terms = losses.terms
        if check:
            self.check(step)

    def check(self, step: int) -> None:
        """Raises if a loss since the last check was not finite."""
        if self._sum is not None and not math.isfinite(self._sum.item()):
            shown = ", ".join(f"{name}={term.item():.4g}" for name, term in self._terms.items())
            raise KdxError(
                f"the loss is not finite at or before step {step} (last terms: {shown}); lower the learning rate, clip "
                "the gradient or check the data. The last checkpoint is from before"
            )
        self._sum = None
