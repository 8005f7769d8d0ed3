"""Classification: each sample, pixel or token is of one class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from kdx.batch import IGNORE
from kdx.class_numbers import check_class_numbers
from kdx.ranges import check_number
from kdx.responses import Responses
from kdx.tasks.base import Task
from kdx.tasks.weighing import Weights

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = ["Classification", "cross_entropy"]


class Classification(Task):
    """Each sample is of one class: cross-entropy, judged by accuracy.

    Loss: the mean of ``-log softmax(z)[y]`` over the samples with a label; with class weights the weighted mean, as in
    :func:`torch.nn.functional.cross_entropy`. The gradient reaches the logits. A batch without a label gives 0 with
    zero gradient, where PyTorch gives NaN.

    Outputs are logits ``[N, C]`` (or ``[N, C, d1, d2, ...]``) and targets int64 ``[N]`` (``[N, d1, d2, ...]``);
    ``-100`` marks what has no label. Soft labels, as mixup makes them, are probabilities of the outputs' shape; the
    loss is then the mean of ``-sum_c y_c log softmax(z)_c``, over as many elements as there are without the class
    axis, whatever the class weights. A row of NaN has no label.

    Args:
        label_smoothing: share of a label's mass that is spread over all classes, below 1.
        class_weights: weight of each class in the mean, ``C`` numbers; None weighs all alike.
        class_dim: the class axis of the outputs. Three dimensions need it, as ``[N, L, C]`` and ``[N, C, L]`` cannot
            be told apart; None is axis 1 of all others.

    Raises:
        ValueError: a share or a weight out of range; in a call, three dimensions without ``class_dim``, or outputs and
            targets whose shapes do not belong together.
        TypeError: in a call, targets that are neither int64 nor probabilities.

    Example:
        >>> task = Classification(class_weights=[1.0, 3.0])
        >>> task.count(torch.tensor([0, 1, 1, -100])).item()
        7.0
    """

    metric = "accuracy"
    label = "accuracy"
    one_class = True

    def __init__(
        self,
        *,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        class_dim: int | None = None,
    ) -> None:
        self.label_smoothing = check_number("label_smoothing", label_smoothing, least=0, below=1)
        if class_weights is not None:
            class_weights = [check_number("class_weights", weight, least=0) for weight in class_weights]
            if not any(class_weights):
                raise ValueError(f"class_weights must not be all 0, got {class_weights}")
        if class_dim == 0:
            raise ValueError("class_dim: axis 0 is that of the samples; give that of the classes, got 0")
        self.class_dim = class_dim
        self._weights = None if class_weights is None else Weights(class_weights)

    @property
    @override
    def responses(self) -> Responses:
        return Responses(class_dim=self.class_dim)

    @override
    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        axis = self._fit(outputs, targets)
        logits = (outputs if outputs.dtype == torch.float64 else outputs.float()).movedim(axis, 1)
        weight = None if self._weights is None else self._weights.on(outputs).to(logits.dtype)
        options: dict[str, Any] = {"weight": weight, "label_smoothing": self.label_smoothing}
        if targets.is_floating_point():
            known = self.labelled(targets).movedim(axis, 1)
            wanted = targets.to(logits.dtype).movedim(axis, 1)
            each = F.cross_entropy(logits, torch.where(known, wanted, 0.0), reduction="none", **options)
            total = torch.where(known[:, 0], each, 0.0).sum()
        else:
            total = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum", **options)
        count = self.count(targets)
        return (total / torch.where(count > 0, count, 1).to(total.dtype)).to(outputs.dtype)

    @override
    def count(self, targets: Tensor) -> Tensor:
        """The number of samples (pixels, tokens) with a label, or the sum of their classes' weights."""
        labelled = self.labelled(targets)
        if targets.is_floating_point():
            return labelled.select(self._axis(targets, soft=True), 0).sum()
        if self._weights is None:
            return labelled.sum()
        return torch.where(labelled, self._weights.on(targets)[targets.clamp(min=0)], 0.0).sum()

    @override
    def labelled(self, targets: Tensor) -> Tensor:
        if not targets.is_floating_point():
            return targets != IGNORE
        return (~targets.isnan()).all(self._axis(targets, soft=True), keepdim=True).expand_as(targets)

    @override
    def classes(self, targets: Any) -> Tensor | None:
        return targets if targets.dim() == 1 and not targets.is_floating_point() else None

    @override
    def check(self, outputs: Tensor, targets: Any) -> None:
        self.check_values(targets, outputs.shape[self._fit(outputs, targets)])

    @override
    def check_values(self, targets: Any, width: Any) -> None:
        if not targets.is_floating_point():
            check_class_numbers(self._name, targets, width)
            return
        axis = self._axis(targets, soft=True)
        sums, tolerance = targets.double().sum(axis), 4 * torch.finfo(targets.dtype).eps * width + 1e-5
        if not targets.numel() or bool(((sums - 1).abs().amax() <= tolerance) & (targets.amin() >= 0)):
            return
        labelled, sums = targets[self.labelled(targets)], sums[~sums.isnan()]
        off = (sums - 1).abs() > tolerance
        if bool((labelled < 0).any()) or bool(off.any()):
            found = f"a sum of {sums[off][0].item():.4g}" if bool(off.any()) else f"{labelled.min().item():.4g}"
            raise ValueError(
                f"{self._name}: targets of floating point are soft labels, probabilities that sum to 1 along axis "
                f"{axis}, got {found}; give int64 class numbers, or the task multi-label for labels of their own"
            )

    @override
    def metrics(self, outputs: Tensor) -> dict[str, Metric]:
        from torchmetrics.classification import MulticlassAccuracy

        from kdx.tasks.prepared import Prepared

        classes = outputs.shape[self._axis(outputs)]
        accuracy = MulticlassAccuracy(num_classes=classes, average="micro", ignore_index=IGNORE)
        return {"accuracy": Prepared(accuracy, self._flat)}

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _axis(self, outputs: Tensor, *, soft: bool = False) -> int:
        """The class axis of outputs or soft labels."""
        if outputs.dim() < 2 and soft:
            raise ValueError(
                f"{self._name}: targets of floating point are soft labels [N, C], got shape {list(outputs.shape)}; "
                "give int64 class numbers"
            )
        if outputs.dim() == 3 and self.class_dim is None:
            raise ValueError(
                f"{self._name}: outputs of shape {list(outputs.shape)} may be [N, L, C] or [N, C, L]; take the task "
                "causal-lm (logits of a language model, held against the next token), or token-classification (a class "
                "for each token), or say which is the axis of the classes with the option class_dim (2 or 1)"
            )
        try:
            return self.responses.axis(outputs.shape)
        except ValueError as error:
            raise ValueError(
                f"{self._name}: {error}" + ("; take the task binary for one logit" if outputs.dim() == 1 else "")
            ) from error

    def _fit(self, outputs: Tensor, targets: Any) -> int:
        """The class axis of the outputs, if shapes and dtypes of both belong together."""
        if not isinstance(targets, Tensor):
            raise TypeError(f"{self._name}: expected a tensor of classes as targets, got {type(targets).__name__}")
        axis = self._axis(outputs)
        shape = list(outputs.shape)
        wanted = shape if targets.is_floating_point() else shape[:axis] + shape[axis + 1 :]
        if not targets.is_floating_point() and targets.dtype != torch.int64:
            raise TypeError(
                f"{self._name}: expected targets of int64, or soft labels of floating point, got {targets.dtype}; give "
                f"targets.long(), and {IGNORE} for what has no label"
            )
        if list(targets.shape) != wanted:
            raise ValueError(self._mismatch(shape, list(targets.shape), wanted, soft=targets.is_floating_point()))
        return axis

    def _mismatch(self, outputs: list[int], targets: list[int], wanted: list[int], *, soft: bool) -> str:
        kind = "soft labels" if soft else "class numbers"
        message = f"{self._name}: for outputs {outputs} expected {kind} of shape {wanted} as targets, got {targets}"
        if not soft and targets == outputs:
            message += "; of one-hot targets give targets.argmax(axis of the classes), or targets.float()"
        elif not soft and targets == [*wanted, 1]:
            message += "; give targets.squeeze(-1)"
        elif soft and targets == outputs[:1] + outputs[2:]:
            message += "; floats are read as soft labels, so give class numbers as targets.long()"
        return message

    def _flat(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The class that is most likely and the right one, ``[M]`` each, of what has a label."""
        axis = self._fit(outputs, targets)
        self.check_values(targets, outputs.shape[axis])
        if targets.is_floating_point():
            known = self.labelled(targets).select(axis, 0)
            targets = torch.where(known, targets.nan_to_num(nan=-1.0).argmax(axis), IGNORE)
        known = targets != IGNORE
        return outputs.argmax(axis)[known], targets[known]


cross_entropy = Classification()
"""The task that schemes have where none is given."""
