"""Multi-label classification: each of several labels is there or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from kdx.batch import IGNORE
from kdx.ranges import check_number
from kdx.responses import Form, Responses
from kdx.tasks.base import Task
from kdx.tasks.weighing import Weights

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = ["MultiLabel"]


class MultiLabel(Task):
    """Each of C labels is there or not: binary cross-entropy per label, judged by mean average precision.

    Loss: the mean over the labelled elements of ``-w y log sigmoid(z) - (1 - y) log(1 - sigmoid(z))``, as in
    :func:`torch.nn.functional.binary_cross_entropy_with_logits`; ``w`` is ``pos_weight`` and does not enter what is
    divided by. The gradient reaches the logits. A batch without a label gives 0 with zero gradient.

    Outputs are logits ``[N, C]``; targets have their shape and are 1 or 0, floats or int64, or floats in between. NaN
    and ``-100`` mark an element of which nobody knows whether the label is there.

    Args:
        pos_weight: weight of the labels that are there: a number, or ``C`` numbers; above 0.
        threshold: probability from which a label counts as predicted, for F1 and exact match.

    Raises:
        ValueError: a weight or the threshold out of range; in a call, targets of another shape.
        TypeError: in a call, targets that are neither float nor int64.

    Example:
        >>> task, targets = MultiLabel(), torch.tensor([[1.0, 0.0], [1.0, float("nan")]])
        >>> round(task(torch.zeros(2, 2), targets).item(), 4), task.count(targets).item()
        (0.6931, 3)
    """

    metric = "map"
    label = "mean average precision"

    def __init__(self, *, pos_weight: float | Sequence[float] | None = None, threshold: float = 0.5) -> None:
        numbers = [pos_weight] if isinstance(pos_weight, int | float) else list(pos_weight or [])
        if pos_weight is not None and not numbers:
            raise ValueError(f"pos_weight must be > 0: one number, or one for each label; got {pos_weight}")
        numbers = [check_number("pos_weight", number, above=0) for number in numbers]
        self.threshold = check_number("threshold", threshold, above=0, below=1)
        self._weights = Weights(numbers) if numbers else None

    @property
    @override
    def responses(self) -> Responses:
        return Responses(form=Form.BERNOULLI)

    @override
    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs, targets = self._fit(outputs, targets)
        logits = outputs if outputs.dtype == torch.float64 else outputs.float()
        labelled = self.labelled(targets)
        wanted = torch.where(labelled, targets, 0).to(logits.dtype)
        weight = None
        if self._weights is not None:
            weight = self._weights.on(logits).to(logits.dtype)
            weight = weight.view(-1, *[1] * (logits.dim() - 2))  # along axis 1
        each = F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weight, reduction="none")
        count = labelled.sum()
        return (torch.where(labelled, each, 0.0).sum() / count.clamp(min=1)).to(outputs.dtype)

    @override
    def count(self, targets: Tensor) -> Tensor:
        """The number of labelled elements."""
        return self.labelled(targets).sum()

    @override
    def labelled(self, targets: Tensor) -> Tensor:
        return (targets != IGNORE) & ~targets.isnan()

    @override
    def check(self, outputs: Tensor, targets: Any) -> None:
        outputs, targets = self._fit(outputs, targets)
        if self._weights is not None and len(self._weights.values) not in (1, outputs.shape[1]):
            raise ValueError(
                f"{self._name}: pos_weight has {len(self._weights.values)} numbers, the outputs have "
                f"{outputs.shape[1]} labels; give one number, or one for each label"
            )
        self.check_values(targets, outputs.shape[1])

    @override
    def check_values(self, targets: Any, width: Any) -> None:
        if not targets.numel():
            return
        low, high = (end.item() for end in targets.aminmax())
        if low >= 0 and high <= 1:
            return
        known = targets[self.labelled(targets)]
        low, high = (known.min().item(), known.max().item()) if len(known) else (0, 1)
        if low < 0 or high > 1:
            raise ValueError(
                f"{self._name}: expected targets 1 (the label is there) and 0 (it is not), or NaN or {IGNORE} where "
                f"nobody knows, got {low:g} .. {high:g}; for class numbers take the task classification"
            )

    @override
    def metrics(self, outputs: Tensor) -> dict[str, Metric]:
        from torchmetrics.classification import MultilabelAveragePrecision, MultilabelExactMatch, MultilabelF1Score

        from kdx.tasks.prepared import Prepared

        options: dict[str, Any] = {"num_labels": outputs.shape[1], "ignore_index": IGNORE}
        made: dict[str, Metric] = {
            "map": MultilabelAveragePrecision(**options),
            "f1": MultilabelF1Score(threshold=self.threshold, **options),
            "exact_match": MultilabelExactMatch(threshold=self.threshold, **options),
        }
        return {name: Prepared(metric, self._judged) for name, metric in made.items()}

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _fit(self, outputs: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        """Outputs and targets of one shape, if shapes and dtypes belong together."""
        if not isinstance(targets, Tensor) or not (targets.is_floating_point() or targets.dtype == torch.int64):
            came = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
            raise TypeError(
                f"{self._name}: expected targets 0 and 1 of floating point or int64, got {came}; give targets.float()"
            )
        if outputs.dim() < 2 or targets.shape != outputs.shape:
            raise ValueError(
                f"{self._name}: expected outputs [N, C] and targets of their shape, 1 where a label is there, got "
                f"outputs {list(outputs.shape)} and targets {list(targets.shape)}"
            )
        return outputs, targets

    def _judged(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and int64 labels, ``-100`` where nobody knows."""
        outputs, targets = self._fit(outputs, targets)
        self.check_values(targets, outputs.shape[1])
        labelled = self.labelled(targets)
        return outputs.sigmoid(), torch.where(labelled, targets, 0).round().long().where(labelled, IGNORE)
