"""The training losses of an epoch: of all of its steps as if they were one batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdx.losses import Count, Losses

__all__ = ["EpochLosses"]


class EpochLosses:
    """Adds up the losses of an epoch's steps on their device, so that no step waits for it.

    A term of the epoch is the mean over everything that it counted in the steps (rows, labelled pixels, ...), so that a
    short last batch weighs by its rows; 0 if it counted nothing. The loss is the sum of the terms.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Count] = {}
        self._counts: dict[str, Count] = {}

    def add(self, losses: Losses) -> None:
        """Takes the losses of a step, without their graph."""
        for name, term in losses.terms.items():
            wide = torch.float32 if term.device.type == "mps" else torch.float64  # MPS has no float64
            count = losses.counts.get(name, 1)
            if isinstance(count, Tensor):
                count = count.to(wide)
            self._sums[name] = self._sums.get(name, 0) + term.to(wide) * count
            self._counts[name] = self._counts.get(name, 0) + count

    def row(self) -> dict[str, float]:
        """The means since the start of the epoch, ``train/loss`` and ``train/<term>``; the next epoch begins."""
        found = {
            f"train/{name}": float(total) / count if (count := float(self._counts[name])) else 0.0
            for name, total in self._sums.items()
        }
        self._sums, self._counts = {}, {}
        return {"train/loss": sum(found.values()), **found}

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        return {"sums": self._sums, "counts": self._counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from saved sums."""
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])
