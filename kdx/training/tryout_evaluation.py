"""The evaluation of a run, tried on one batch before training."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from kdx.blame import blaming
from kdx.errors import ComponentError
from kdx.schemes.base import Scheme
from kdx.training.batches import looking_at
from kdx.training.evaluation import Metrics, evaluate, output_for

__all__ = ["try_evaluation"]


def try_evaluation(
    scheme: Scheme, loader: Iterable[Any], metrics: Metrics, device: torch.device
) -> dict[str, bool | None]:
    """Evaluates every student of a scheme on the first batch of a loader, and leaves no trace.

    Where a metric cannot be computed from so few rows all batches are taken. An iterator, which runs once, is left
    alone.

    Args:
        scheme: on ``device``.
        loader: see :func:`kdx.training.evaluate`.
        metrics: see :data:`kdx.training.Metrics`.
        device: where batches go.

    Returns:
        The keys that a row of the history will have, as ``"student/accuracy"``, each with whether more is better (None:
        the metric does not say); none for an iterator.

    Raises:
        ComponentError: a student, a metric or the data fail; the message names which.
        ValueError: the loader is empty.
    """
    if isinstance(loader, Iterator):  # iter() would draw the seeds of a loader
        return {}

    def copies(logits: Any) -> dict[str, Any]:
        with blaming("the metrics", metrics):
            return {name: copy.deepcopy(metric) for name, metric in metrics(logits).items()}

    directions: dict[str, bool | None] = {}
    for name, student in scheme.students.items():
        options: dict[str, Any] = {"metrics": copies, "device": device, "output": output_for(scheme, name, metrics)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metrics that want more rows
            try:
                with looking_at(loader, batches=1) as first:
                    found = evaluate(student, first, **options)
            except ComponentError:
                with looking_at(loader) as every:
                    found = evaluate(student, every, **options)
        directions |= {f"{name}/{metric}": better for metric, better in found.higher_is_better.items()}
    return directions
