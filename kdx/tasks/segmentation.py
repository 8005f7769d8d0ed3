"""Segmentation: each pixel is of one class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from typing_extensions import override

from kdx.batch import IGNORE
from kdx.responses import Responses
from kdx.tasks.classification import Classification

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = ["Segmentation"]


class Segmentation(Classification):
    """Each pixel is of one class: cross-entropy over the pixels, judged by mean IoU.

    Loss: that of :class:`Classification`, a mean over the pixels of the batch with a class. Outputs are logits
    ``[N, C, H, W]`` (or ``[N, C, L]``, ``[N, C, D, H, W]``), targets int64 of the same sizes without ``C``; ``-100``
    marks void pixels, of which nothing is learned: not from the labels, not from a teacher.

    Mean IoU is the mean over the classes that occur, in targets or predictions, of the intersection over the union of
    their pixels in all images; void pixels are in neither.

    Args:
        label_smoothing: share of a label's mass that is spread over all classes, below 1.
        class_weights: weight of each class in the mean, ``C`` numbers; None weighs all alike.

    Raises:
        ValueError: a share or a weight out of range; in a call, outputs of another resolution than the targets.

    Example:
        >>> import torch
        >>> targets = torch.tensor([[[0, 1], [-100, 1]]])
        >>> round(Segmentation()(torch.zeros(1, 2, 2, 2), targets).item(), 4), Segmentation().count(targets).item()
        (0.6931, 3)
    """

    metric = "miou"
    label = "mean IoU"
    one_class = False

    def __init__(self, *, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None) -> None:
        super().__init__(label_smoothing=label_smoothing, class_weights=class_weights, class_dim=1)

    @property
    @override
    def responses(self) -> Responses:
        return Responses(class_dim=1, void=True)

    @override
    def classes(self, targets: Any) -> None:
        return None

    @override
    def metrics(self, outputs: Tensor) -> dict[str, Metric]:
        from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

        from kdx.tasks.prepared import Prepared

        classes = outputs.shape[1]
        return {
            "miou": Prepared(MulticlassJaccardIndex(num_classes=classes, ignore_index=IGNORE), self._flat),
            "pixel_accuracy": Prepared(MulticlassAccuracy(num_classes=classes, average="micro"), self._flat),
        }

    @override
    def _mismatch(self, outputs: list[int], targets: list[int], wanted: list[int], *, soft: bool) -> str:
        message = super()._mismatch(outputs, targets, wanted, soft=soft)
        if len(targets) == len(wanted) and targets[:1] == outputs[:1]:
            message += (
                "; outputs and targets are of different resolution: let the model end in "
                f"F.interpolate(logits, size={tuple(targets[2:] if soft else targets[1:])}), or give targets of the "
                "size of its outputs"
            )
        return message
