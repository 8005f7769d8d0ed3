"""Evaluation of a scheme's students on held-out data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdx import rng
from kdx.batch import Batch
from kdx.capture import call, logits_of
from kdx.modes import evaluating
from kdx.tasks.classification import Classification

__all__ = ["Metrics", "classification", "evaluate"]

Metrics = Callable[[Tensor], Mapping[str, Any]]
"""Gets the first logits and returns name -> ``torchmetrics.Metric``; ``update(logits, targets)`` is called on each."""


def classification(logits: Tensor) -> dict[str, Any]:
    """Accuracy over single-label classes; the default."""
    return Classification().metrics(logits)


def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    metrics: Metrics = classification,
    device: torch.device | str | None = None,
    output: Callable[[Any], Tensor] | None = None,
) -> dict[str, float]:
    """Runs a model over a loader in evaluation mode, without gradient, and computes metrics.

    The model's modes (train, eval) and the global random states are restored afterwards.

    Args:
        model: the model, on ``device``.
        loader: batches as :meth:`kdx.Batch.of` reads them, with targets.
        metrics: see :data:`Metrics`.
        device: where batches go; None takes the model's.
        output: see :class:`kdx.Taps`.

    Returns:
        Metric name -> value.

    Raises:
        ValueError: the loader is empty.
    """
    device = device if device is not None else next((p.device for p in model.parameters()), torch.device("cpu"))
    read = output or logits_of
    computed: Mapping[str, Any] | None = None
    with rng.isolated(), evaluating(model), torch.no_grad():
        for item in loader:
            batch = Batch.of(item).to(device)
            logits = read(call(model, batch.inputs)).float()
            if computed is None:
                computed = {name: metric.to(device) for name, metric in metrics(logits).items()}
            for metric in computed.values():
                metric.update(logits, batch.targets)
    if computed is None:
        raise ValueError("evaluate got an empty loader; give at least one batch")
    return {name: float(metric.compute()) for name, metric in computed.items()}
