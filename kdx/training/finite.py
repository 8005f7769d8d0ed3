"""Ends a run whose losses are not finite."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdx.batch import Batch
from kdx.errors import KdxError
from kdx.losses import Losses
from kdx.training.incoming import holes

__all__ = ["Finite"]

MOST = 1000
"""Steps that are kept until they are looked at."""


class Finite:
    """Detects a loss that is not finite: on the CPU at once, on a device without a sync in every step."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, Losses, Tensor | None]] = []
        self._window: Sequence[Batch] = ()

    def add(self, losses: Losses, step: int, *, check: bool, window: Sequence[Batch] = ()) -> None:
        """Takes the losses of a step.

        Args:
            losses: of the step.
            step: its number, from 1.
            check: whether to read the losses at once.
            window: the micro-batches of the step.
        """
        on_cpu = losses.total.device.type == "cpu"
        self._steps.append((step, losses, window[0].index if window else None))
        if check or on_cpu or len(self._steps) >= MOST:
            self._window = window
            self.check(step)
            self._window = ()

    def check(self, step: int) -> None:
        """Raises if a loss since the last check was not finite.

        Raises:
            KdxError: one was not; the message names the step, its terms, and the samples whose inputs are no numbers.
        """
        steps, self._steps = self._steps, []
        if not steps or bool(torch.stack([losses.total.isfinite() for _, losses, _ in steps]).all()):
            return
        first, losses, index = next(each for each in steps if not bool(each[1].total.isfinite()))
        shown = ", ".join(f"{name}={term.item():.4g}" for name, term in losses.terms.items())
        raise KdxError(f"the loss is not finite at step {first} ({shown}); {self._cause(first, step, index)}")

    def _cause(self, first: int, last: int, index: Tensor | None) -> str:
        if first == last and (found := next((hole for batch in self._window if (hole := holes(batch))), None)):
            return f"{found}: mend or leave out those samples. The last checkpoint is from before"
        seen = ""
        if index is not None:
            seen = f" (its first samples are {', '.join(map(str, index[:5].tolist()))})"
        return f"lower the learning rate, clip the gradient or check the data{seen}. The last checkpoint is from before"
