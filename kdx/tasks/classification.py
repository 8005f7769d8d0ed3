"""Classification: each sample is of one class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from kdx.batch import IGNORE
from kdx.tasks.base import Task

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = ["Classification"]


class Classification(Task):
    """Each sample is of one class: cross-entropy, judged by accuracy.

    Loss: the mean of ``-log softmax(z)[y]`` over the samples with a label; with class weights the weighted mean, as in
    :func:`torch.nn.functional.cross_entropy`. The gradient reaches the logits. A batch without a label gives 0 with
    zero gradient, where PyTorch gives NaN.

    Outputs are logits ``[N, C]`` (or ``[N, C, d1, ...]``) and targets int64 ``[N]`` (``[N, d1, ...]``); ``-100`` marks
    what has no label.

    Args:
        label_smoothing: share of a label's mass that is spread over all classes, below 1.
        class_weights: weight of each class in the mean, ``C`` numbers; None weighs all alike.

    Raises:
        ValueError: a share or a weight out of range.

    Example:
        >>> task = Classification(class_weights=[1.0, 3.0])
        >>> task.count(torch.tensor([0, 1, 1, -100])).item()
        7.0
    """

    metric = "accuracy"
    label = "accuracy"
    one_class = True

    def __init__(self, *, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, got {label_smoothing}")
        if class_weights is not None and (min(class_weights, default=0) < 0 or sum(class_weights) <= 0):
            raise ValueError(f"class_weights must be at least 0, and not all 0, got {list(class_weights)}")
        self.label_smoothing = label_smoothing
        self._weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float64)

    @override
    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        total = F.cross_entropy(
            outputs,
            targets,
            weight=None if self._weights is None else self._placed(outputs).to(outputs.dtype),
            ignore_index=IGNORE,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        count = self.count(targets)
        return total / torch.where(count > 0, count, 1).to(total.dtype)

    @override
    def count(self, targets: Tensor) -> Tensor:
        """The number of samples with a label, or the sum of their classes' weights."""
        labelled = targets != IGNORE
        if self._weights is None:
            return labelled.sum()
        return torch.where(labelled, self._placed(targets)[targets.clamp(min=0)], 0.0).sum()

    @override
    def metrics(self, outputs: Tensor) -> dict[str, Metric]:
        from torchmetrics.classification import MulticlassAccuracy

        accuracy = MulticlassAccuracy(num_classes=outputs.shape[1], average="micro", ignore_index=IGNORE)
        return {"accuracy": accuracy}

    def _placed(self, like: Tensor) -> Tensor:
        """The class weights on a tensor's device, copied there once."""
        assert self._weights is not None
        self._weights = self._weights.to(like.device)
        return self._weights
