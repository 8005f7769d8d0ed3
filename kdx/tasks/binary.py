"""Binary classification: yes or no, from one logit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from typing_extensions import override

from kdx.batch import IGNORE
from kdx.tasks.multi_label import MultiLabel

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = ["Binary"]


class Binary(MultiLabel):
    """Yes or no from one logit: binary cross-entropy, judged by accuracy.

    Loss: that of :class:`MultiLabel` with one label, a mean over the samples with a label. Outputs are logits ``[N]``
    or ``[N, 1]``, targets ``[N]`` or ``[N, 1]``, 1 or 0, floats or int64; NaN and ``-100`` mark a sample without a
    label.

    Args:
        pos_weight: weight of the samples that are 1, above 0.
        threshold: probability from which a sample counts as 1, for accuracy and F1.

    Raises:
        ValueError: a weight or the threshold out of range; in a call, outputs of more than one logit a sample.
        TypeError: in a call, targets that are neither float nor int64.

    Example:
        >>> import torch
        >>> round(Binary()(torch.tensor([[2.0], [0.0]]), torch.tensor([1, -100])).item(), 4)
        0.1269
    """

    metric = "accuracy"
    label = "accuracy"

    def __init__(self, *, pos_weight: float | None = None, threshold: float = 0.5) -> None:
        super().__init__(pos_weight=pos_weight, threshold=threshold)

    @override
    def outputs(self, num_classes: int) -> int:
        if num_classes not in (1, 2):
            raise ValueError(
                f"Binary: the data set has {num_classes} classes, not 2; take the task classification or multi-label"
            )
        return 1

    @override
    def classes(self, targets: Any) -> Tensor | None:
        return None if targets.is_floating_point() else targets.reshape(len(targets))

    @override
    def metrics(self, outputs: Tensor) -> dict[str, Metric]:
        from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, BinaryF1Score

        from kdx.tasks.prepared import Prepared

        made: dict[str, Metric] = {
            "accuracy": BinaryAccuracy(threshold=self.threshold),
            "f1": BinaryF1Score(threshold=self.threshold),
            "auroc": BinaryAUROC(),
        }
        return {name: Prepared(metric, self._judged) for name, metric in made.items()}

    @override
    def _fit(self, outputs: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        one = outputs.dim() == 1 or (outputs.dim() == 2 and outputs.shape[1] == 1)
        if not one:
            raise ValueError(
                f"Binary: expected one logit for each sample, outputs [N] or [N, 1], got {list(outputs.shape)}; for "
                "two logits take the task classification, for several labels multi-label"
            )
        if isinstance(targets, Tensor) and list(targets.shape) not in ([len(outputs)], [len(outputs), 1]):
            raise ValueError(
                f"Binary: for outputs {list(outputs.shape)} expected targets [{len(outputs)}] or [{len(outputs)}, 1], "
                f"got {list(targets.shape)}"
            )
        flat = targets.reshape(-1, 1) if isinstance(targets, Tensor) else targets
        return super()._fit(outputs.reshape(-1, 1), flat)

    @override
    def _judged(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        probabilities, wanted = super()._judged(outputs, targets)
        known = wanted != IGNORE
        return probabilities[known], wanted[known]
