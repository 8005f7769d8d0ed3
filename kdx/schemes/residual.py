"""Residual distillation: an assistant learns what a finished student misses of its teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import LOGITS, Output, Taps
from kdx.features.operands import check_same_outputs
from kdx.losses import LossTerm
from kdx.modes import hold
from kdx.schemes.apart import check_apart, shared_memory
from kdx.schemes.base import Scheme, Task
from kdx.tasks.classification import cross_entropy
from kdx.teachers import Teacher, as_teacher

__all__ = ["Residual"]


class Residual(Scheme):
    """Trains the assistant in a pair whose outputs add up; the student in it is finished and stays as it is.

    Total: ``w_task * task(z_s + z_a, y) + weight * mean (z_a - (z_t - z_s))^2``, the mean over samples and classes,
    with the logits ``z`` of teacher, student and assistant. Gradients reach the assistant alone; the student runs in
    evaluation mode, so that no statistic of it moves.
    The paper takes feature maps, as the scheme ``residual-features`` does; here the residual is that of the outputs,
    where the three have one width whatever their architectures. Taken from the paper is what its abstract says: the
    student mimics the teacher, the assistant learns the residual error, both together cost no more than the given
    student.

    Args:
        student: a model with the submodules ``student`` and ``assistant`` that returns the sum of their outputs, such
            as :class:`kdx.models.ResidualSum`.
        teacher: a trained model, or a :class:`kdx.teachers.Teacher`.
        task: see :class:`kdx.Scheme`; on the sum.
        weight: of the residual term; 1 is ours.
        student_output: see :class:`kdx.Taps`; of the sum.
        teacher_output: the same for the teacher.

    Raises:
        TypeError: the model has no such submodules.
        ValueError: the assistant shares parameters with the student, or the teacher with the assistant.

    Paper: Gao et al., Residual Knowledge Distillation, 2020, https://arxiv.org/abs/2002.09168.

    Example:
        >>> import torch
        >>> from kdx import Ref
        >>> from kdx.models.residual_sum import ResidualSum
        >>> pair = ResidualSum(Ref("mlp", hidden=[8]), Ref("mlp", hidden=[4]))
        >>> residual = Residual(pair, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10)))
        >>> sorted(residual((torch.ones(4, 1, 28, 28), torch.zeros(4, dtype=torch.int64))).terms)
        ['residual', 'task']
        >>> {name.split(".")[0] for name, p in pair.named_parameters() if p.requires_grad}
        {'assistant'}
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Teacher,
        *,
        task: Task = cross_entropy,
        weight: float = 1.0,
        student_output: Output = None,
        teacher_output: Output = None,
    ) -> None:
        super().__init__(task=task)
        if not all(isinstance(getattr(student, name, None), nn.Module) for name in ("student", "assistant")):
            raise TypeError(
                f"the model must have the submodules student and assistant, as ResidualSum has; got "
                f"{type(student).__name__}"
            )
        self.pair = student
        self.teacher = as_teacher(teacher, teacher_output)
        self.teacher.bind(self.responses)
        self.residual_weight = weight
        self.taps = Taps(student, ("student", "assistant", LOGITS), output=student_output)
        if shared := shared_memory(
            self.pair.get_submodule("assistant").named_parameters(), self._finished.named_parameters()
        ):
            ours, theirs = shared[0]
            raise ValueError(
                f"the assistant's {ours!r} is the student's {theirs!r}, which is finished and may not change; build "
                "the assistant apart, or from copy.deepcopy(student)"
            )
        self._finished.requires_grad_(False)
        check_apart(self)
        hold(self._finished)

    @property
    def _finished(self) -> nn.Module:
        return self.pair.get_submodule("student")

    @property
    @override
    def students(self) -> dict[str, nn.Module]:
        return {"student": self.pair}

    @override
    def output_of(self, student: str) -> Callable[[Any], Tensor] | None:
        return self.taps.output

    @override
    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        hold(self._finished)
        return self

    @override
    def terms(self, batch: Batch) -> dict[str, LossTerm]:
        hold(self._finished)
        teacher = self.teacher(batch).logits
        captured = self.taps(batch.inputs)
        terms: dict[str, LossTerm] = {**self.task_terms(captured, batch)}
        check_same_outputs(captured["student"], teacher)
        check_same_outputs(captured["assistant"], teacher)
        missed = teacher - captured["student"].detach()  # [N, C]
        terms["residual"] = self.residual_weight * F.mse_loss(captured["assistant"], missed)
        return terms
