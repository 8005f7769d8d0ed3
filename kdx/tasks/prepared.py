"""A metric that sees the outputs and targets of a task in the form that it wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["Prepared"]


class Prepared(Metric):
    """A metric of torchmetrics whose ``update(outputs, targets)`` first puts both into the form that it wants.

    Args:
        metric: is updated and computed.
        prepare: ``(outputs, targets) -> (predictions, targets)``, in the form of the metric.
    """

    full_state_update = False

    def __init__(self, metric: Metric, prepare: Callable[[Tensor, Any], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.metric = metric
        self.prepare = prepare

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]  # a constant of every class in torchmetrics
        """That of the metric."""
        found: bool | None = self.metric.higher_is_better
        return found

    def update(self, outputs: Tensor, targets: Any) -> None:
        """Adds a batch."""
        predictions, wanted = self.prepare(outputs, targets)
        if predictions.numel():
            self.metric.update(predictions, wanted)

    def compute(self) -> Any:
        """The value of the metric, NaN where nothing had a label."""
        return self.metric.compute() if self.metric.update_called else torch.tensor(torch.nan)

    def reset(self) -> None:
        """Forgets all batches."""
        super().reset()
        self.metric.reset()
