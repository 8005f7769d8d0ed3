"""Token classification: each token of a sequence is of one class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from typing_extensions import override

from kdx.responses import Responses
from kdx.tasks.classification import Classification

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = ["TokenClassification"]


class TokenClassification(Classification):
    """Each token of a sequence is of one class: cross-entropy over the tokens, judged by accuracy per token.

    Loss: that of :class:`Classification`, a mean over the tokens of the batch with a class. Outputs are logits
    ``[N, L, C]``, targets int64 ``[N, L]``; ``-100`` marks padding and tokens that are not asked for, of which nothing
    is learned: not from the labels, not from a teacher.

    Args:
        label_smoothing: share of a label's mass that is spread over all classes, below 1.
        class_weights: weight of each class in the mean, ``C`` numbers; None weighs all alike.

    Raises:
        ValueError: a share or a weight out of range; in a call, outputs and targets of other shapes.

    Example:
        >>> import torch
        >>> TokenClassification()(torch.zeros(1, 3, 4), torch.tensor([[0, 3, -100]])).item()
        1.3862943649291992
    """

    metric = "accuracy"
    label = "accuracy per token"
    one_class = False

    def __init__(self, *, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None) -> None:
        super().__init__(label_smoothing=label_smoothing, class_weights=class_weights, class_dim=2)

    @property
    @override
    def responses(self) -> Responses:
        return Responses(class_dim=2, void=True)

    @override
    def classes(self, targets: Any) -> None:
        return None

    @override
    def metrics(self, outputs: Tensor) -> dict[str, Metric]:
        from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

        from kdx.tasks.prepared import Prepared

        classes = outputs.shape[2]
        return {
            "accuracy": Prepared(MulticlassAccuracy(num_classes=classes, average="micro"), self._flat),
            "f1": Prepared(MulticlassF1Score(num_classes=classes, average="macro"), self._flat),
        }
