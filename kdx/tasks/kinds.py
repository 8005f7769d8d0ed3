"""What a student is for: the loss on its labels, and the metric that says how well it does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdx.batch import IGNORE
from kdx.losses import cross_entropy
from kdx.training.evaluation import Metrics, classification

__all__ = ["TaskKind", "retrieval", "task_kind", "triplet"]


@dataclass(frozen=True, slots=True)
class TaskKind:
    """A loss with its metric.

    Args:
        loss: ``(outputs, targets) -> scalar``.
        metrics: see :data:`kdx.training.Metrics`.
        metric: the one that selects the epoch and is reported.
        label: how a report names it.
    """

    loss: Callable[[Tensor, Any], Tensor]
    metrics: Metrics
    metric: str
    label: str


def task_kind(name: str, *, margin: float = 0.2, label_smoothing: float = 0.0) -> TaskKind:
    """The task ``"cross-entropy"`` (outputs are logits) or ``"triplet"`` (outputs are embeddings)."""
    if name == "cross-entropy":
        loss = functools.partial(cross_entropy, label_smoothing=label_smoothing) if label_smoothing else cross_entropy
        return TaskKind(loss, classification, "accuracy", "accuracy")
    if name == "triplet":
        return TaskKind(functools.partial(triplet, margin=margin), retrieval, "recall_at_1", "Recall@1")
    raise ValueError(f"task must be 'cross-entropy' or 'triplet', got {name!r}")


def triplet(embeddings: Tensor, targets: Tensor, *, margin: float = 0.2) -> Tensor:
    """Triplet loss on embeddings of length 1, over all triples of the batch that violate the margin.

    ``mean max(0, |a - p|^2 - |a - n|^2 + margin)`` over the triples (anchor, positive of the same class, negative of
    another) for which it is positive; 0 with zero gradient without one. Gradients reach the embeddings.

    Args:
        embeddings: ``[N, D]``, any length and float dtype; computed in fp32 or wider. Memory is ``N^3``.
        targets: ``[N]`` int64; rows with ``-100`` take no part.
        margin: in squared distance of unit vectors (which lies in 0 .. 4).

    Returns:
        A scalar.

    Paper: Schroff et al., FaceNet, CVPR 2015, https://arxiv.org/abs/1503.03832.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> round(triplet(x, torch.tensor([0, 0, 1])).item(), 4)  # the mean of 2.2 and 0.2
        1.2
    """
    x = F.normalize(embeddings if embeddings.dtype == torch.float64 else embeddings.float(), dim=1)
    square = (x[:, None] - x[None]).square().sum(2)  # [N, N]
    labelled = targets != IGNORE
    same = (targets[:, None] == targets[None]) & labelled[:, None] & labelled[None]
    positive = same & ~torch.eye(len(targets), dtype=torch.bool, device=targets.device)
    negative = (targets[:, None] != targets[None]) & labelled[:, None] & labelled[None]
    violation = (square[:, :, None] - square[:, None, :] + margin).clamp(min=0)  # [anchor, positive, negative]
    violation = torch.where(positive[:, :, None] & negative[:, None, :], violation, 0.0)
    return violation.sum() / (violation > 0).sum().clamp(min=1)


def retrieval(embeddings: Tensor) -> dict[str, Any]:  # metrics are made from the first outputs
    """Recall@1 over everything that is evaluated."""
    from kdx.tasks.recall_at_one import RecallAtOne  # torchmetrics takes longer to import than torch

    return {"recall_at_1": RecallAtOne()}
