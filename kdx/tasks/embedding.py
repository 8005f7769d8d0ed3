"""Embedding: samples of one class lie near each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from kdx.batch import IGNORE
from kdx.ranges import check_number, check_whole
from kdx.responses import Form, Responses
from kdx.tasks.base import Task

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = ["Embedding", "triplet"]


class Embedding(Task):
    """Samples of one class lie near each other: triplet loss, judged by Recall@1.

    Loss: :func:`kdx.tasks.triplet`. Outputs are embeddings ``[N, D]``, targets int64 ``[N]``; ``-100`` marks a sample
    without a label. The count of a batch is that of its labelled samples, though the mean is over the triples that
    violate the margin: like every loss that compares samples, micro-batches see fewer triples than the whole batch.

    Args:
        width: D, the width of the models' output; 128 is the paper's.
        margin: in squared distance of unit vectors, above 0 and at most 4.

    Raises:
        ValueError: a width or a margin out of range.

    Paper: Schroff et al., FaceNet, CVPR 2015, https://arxiv.org/abs/1503.03832.

    Example:
        >>> Embedding(width=32).outputs(num_classes=10)
        32
    """

    metric = "recall_at_1"
    label = "Recall@1"
    relational = True

    def __init__(self, *, width: int = 128, margin: float = 0.2) -> None:
        self.width = check_whole("width", width, least=1)
        self.margin = check_number("margin", margin, above=0, most=4)

    @property
    @override
    def responses(self) -> Responses:
        return Responses(Form.EMBEDDING)

    @override
    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return triplet(outputs, targets, margin=self.margin)

    @override
    def count(self, targets: Tensor) -> Tensor:
        return (targets != IGNORE).sum()

    @override
    def classes(self, targets: Tensor) -> Tensor:
        return targets

    @override
    def check(self, outputs: Tensor, targets: Any) -> None:
        if outputs.dim() != 2:
            raise ValueError(f"Embedding: expected embeddings [N, D] as outputs, got {list(outputs.shape)}")
        if not isinstance(targets, Tensor) or targets.dtype != torch.int64 or list(targets.shape) != [len(outputs)]:
            came = f"{targets.dtype} {list(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
            raise TypeError(
                f"Embedding: expected the class of each sample as targets, int64 [{len(outputs)}] with {IGNORE} for "
                f"none, got {came}"
            )
        self.check_values(targets, None)

    @override
    def check_values(self, targets: Any, width: Any) -> None:
        if bool(((targets < 0) & (targets != IGNORE)).any()):
            raise ValueError(
                f"Embedding: expected classes from 0, or {IGNORE} for no label, got {int(targets.min())}; number the "
                "classes from 0"
            )

    @override
    def metrics(self, outputs: Tensor) -> dict[str, Metric]:
        from kdx.tasks.prepared import Prepared
        from kdx.tasks.recall_at_one import RecallAtOne

        return {"recall_at_1": Prepared(RecallAtOne(), self._known)}

    def _known(self, outputs: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        """Embeddings and classes of the samples with a label."""
        self.check(outputs, targets)
        known = targets != IGNORE
        return outputs[known], targets[known]

    @override
    def outputs(self, num_classes: int) -> int:
        return self.width


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
