"""The targets that a loss of torch takes, checked as the tasks of kdx check theirs."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from kdx.batch import IGNORE
from kdx.class_numbers import check_class_numbers
from kdx.schemes.task_count import is_by_class, is_by_element, loss_name, option_of
from kdx.tasks.base import Task
from kdx.tasks.classification import Classification

__all__ = ["Checks", "checks_of"]


class Checks(Protocol):
    """Checks outputs and targets, as :class:`kdx.tasks.Task` does."""

    def check(self, outputs: Any, targets: Any) -> None:
        """See :meth:`kdx.tasks.Task.check`."""

    def check_values(self, targets: Any, width: Any) -> None:
        """See :meth:`kdx.tasks.Task.check_values`."""


def checks_of(task: Any) -> Checks | None:
    """The checks of a task: its own if it is one of kdx, those of a loss of torch; None for other functions.

    Example:
        >>> import torch.nn.functional as F
        >>> checks = checks_of(F.cross_entropy)
        >>> checks.check(torch.zeros(2, 3), torch.tensor([0, 3]))
        Traceback (most recent call last):
            ...
        ValueError: cross_entropy: expected classes 0 .. 2, as the outputs have 3 (or -100 for no label), got 3 in \
row 1; give the model as many outputs as the data have classes, or number the classes from 0
    """
    if isinstance(task, Task):
        return task
    if is_by_class(task):
        name = loss_name(task)
        return _ByClass(
            name, option_of(task, "ignore_index", IGNORE), soft=name in ("cross_entropy", "CrossEntropyLoss")
        )
    return _ByElement(loss_name(task)) if is_by_element(task) else None


class _ByClass(Classification):
    """The checks of a loss by class.

    Args:
        name: of the loss.
        ignored: its ``ignore_index``.
        soft: whether it takes probabilities too.
    """

    def __init__(self, name: str, ignored: int, *, soft: bool) -> None:
        super().__init__(class_dim=1)
        self.name = name
        self.ignored = ignored
        self.soft = soft

    @property
    @override
    def _name(self) -> str:
        return self.name

    @override
    def _fit(self, outputs: Tensor, targets: Any) -> int:
        if isinstance(targets, Tensor) and targets.is_floating_point() and not self.soft:
            raise TypeError(f"{self.name}: expected class numbers of int64 as targets, got {targets.dtype}")
        axis = super()._fit(outputs, targets)
        if outputs.dim() == 3 and outputs.shape[1] == outputs.shape[2] and not targets.is_floating_point():
            raise ValueError(
                f"{self.name}: it cannot be told which is the axis of the classes in outputs of shape "
                f"{list(outputs.shape)}, as many classes as places; {self.name} would take axis 1. Take the task "
                "causal-lm (logits of a language model, held against the next token), token-classification (a class "
                "for each token), or classification with class_dim=1 (classes on axis 1)"
            )
        return axis

    @override
    def check_values(self, targets: Any, width: Any) -> None:
        if targets.is_floating_point():
            if bool(targets.isnan().any()):
                raise ValueError(
                    f"{self.name}: soft labels of NaN make the loss NaN; take the task classification, to which they "
                    "mean that there is no label"
                )
            super().check_values(targets, width)
        else:
            check_class_numbers(self.name, targets, width, ignored=self.ignored)


class _ByElement:
    """The checks of a loss by element.

    Args:
        name: of the loss.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def check(self, outputs: Any, targets: Any) -> None:
        """Outputs and targets are of one shape, and targets are numbers that the loss can mean."""
        if not isinstance(targets, Tensor) or not isinstance(outputs, Tensor):
            return
        if targets.shape != outputs.shape:
            raise ValueError(
                f"{self.name}: expected targets of the shape of the outputs, {list(outputs.shape)}, which broadcasting "
                f"would hide, got {list(targets.shape)}; reshape one of them"
            )
        self.check_values(targets, None)

    def check_values(self, targets: Any, width: Any) -> None:
        """Targets are finite, and from 0 to 1 where the loss takes probabilities."""
        if not isinstance(targets, Tensor) or not targets.numel():
            return
        if targets.is_floating_point() and not bool(targets.isfinite().all()):
            raise ValueError(
                f"{self.name}: expected finite targets, got NaN or an infinite one, which makes the loss so; the tasks "
                "of kdx (regression, multi-label, binary) take NaN for no label"
            )
        if self.name in ("binary_cross_entropy", "binary_cross_entropy_with_logits", "BCELoss", "BCEWithLogitsLoss"):
            low, high = (end.item() for end in targets.to(torch.float64).aminmax())
            if low < 0 or high > 1:
                raise ValueError(
                    f"{self.name}: expected targets from 0 to 1, got {low:g} .. {high:g}; give 1 where the label is "
                    "there and 0 where it is not; for class numbers take cross_entropy"
                )
