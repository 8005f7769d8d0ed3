"""Supervised training: labels alone, the control of every distillation."""

from __future__ import annotations

from torch import nn
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import Output
from kdx.losses import Mean
from kdx.schemes.base import Task
from kdx.schemes.one_student import OneStudent
from kdx.tasks.classification import cross_entropy

__all__ = ["Supervised"]


class Supervised(OneStudent):
    """Trains one model on the task loss: a teacher, or a student alone as the control.

    Args:
        student: the model.
        task: see :class:`kdx.Scheme`.
        student_output: see :class:`kdx.Taps`.

    Example:
        >>> import torch
        >>> alone = Supervised(torch.nn.Linear(3, 2))
        >>> list(alone((torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))).terms)
        ['task']
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        task: Task = cross_entropy,
        student_output: Output = None,
    ) -> None:
        super().__init__(student, task=task, student_output=student_output)

    @override
    def terms(self, batch: Batch) -> dict[str, Mean]:
        return self.task_terms(self.taps(batch.inputs), batch)
