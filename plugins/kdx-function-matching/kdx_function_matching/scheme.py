"""Function matching: the student learns the teacher's function between the images, not only at them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx import Batch, Mean, Offline, SoftTargets
from kdx.schemes import KnowledgeTerms, Task

__all__ = ["FunctionMatching", "mix"]


def mix(inputs: Tensor, share: Tensor) -> Tensor:
    """``share * x_i + (1 - share) * x_(i-1)``: each sample mixed with the one before it, the first with the last.

    Args:
        inputs: ``[N, ...]``, floating point.
        share: 0-dim, in ``[0, 1]``.
    """
    return share * inputs + (1 - share) * inputs.roll(1, 0)


class FunctionMatching(Offline):
    """Teacher and student see the same mixed images, and the student follows the teacher there.

    Total: ``w_task * task + sum_k w_k * knowledge_k(student(x~), teacher(x~))`` with
    ``x~ = u x_i + (1 - u) x_(i-1)`` and one ``u ~ U(0, 1)`` a batch (mixup with Beta(1, 1)). The paper uses no labels:
    give the task weight 0. With labels the task is ``u task(z, y_i) + (1 - u) task(z, y_(i-1))``. ``u`` is drawn from
    torch's global generator, in training mode only; in evaluation mode the images stay as they are.

    "Patient" is up to the recipe: many epochs, since mixed images never repeat. "Consistent" holds by construction.

    Args:
        student: see :class:`kdx.Offline`.
        teacher: see :class:`kdx.Offline`; a stored teacher will not do, as the mixed images are new every time.
        task: see :class:`kdx.Scheme`; None by default.
        knowledge: see :class:`kdx.Scheme`; by default the KL to the teacher at temperature 1, as in the paper.
        student_output: see :class:`kdx.Taps`.
        teacher_output: the same for the teacher.

    Raises:
        TypeError: in a step, if the batch's inputs are not one floating-point tensor; token ids cannot be mixed.

    Paper: Beyer et al., Knowledge distillation: A good teacher is patient and consistent, CVPR 2022,
    https://arxiv.org/abs/2106.05237; mixup: Zhang et al., ICLR 2018, https://arxiv.org/abs/1710.09412.

    Example:
        >>> import torch
        >>> student, teacher = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
        >>> scheme = FunctionMatching(student, teacher)
        >>> sorted(scheme((torch.ones(4, 3), None)).terms)
        ['kd']
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        task: Task = None,
        knowledge: KnowledgeTerms | None = None,
        student_output: Callable[[Any], Tensor] | str | None = None,
        teacher_output: Callable[[Any], Tensor] | str | None = None,
    ) -> None:
        super().__init__(
            student,
            teacher,
            task=task,
            knowledge=knowledge or {"kd": SoftTargets(temperature=1.0)},
            student_output=student_output,
            teacher_output=teacher_output,
        )

    @override
    def terms(self, batch: Batch) -> dict[str, Mean]:
        if not isinstance(batch.inputs, Tensor) or not batch.inputs.is_floating_point():
            kind = f"{batch.inputs.dtype} tensor" if isinstance(batch.inputs, Tensor) else type(batch.inputs).__name__
            raise TypeError(f"function-matching mixes inputs, so they must be one floating-point tensor; got {kind}")
        draw = torch.rand if self.training else torch.ones
        share = draw((), device=batch.inputs.device)
        mixed = batch._replace(inputs=mix(batch.inputs, share))
        teacher, student = self.teacher(mixed), self.taps(mixed.inputs)
        terms = self.knowledge_terms(self.components, student, teacher, mixed)
        if self.task_weight == 0:
            return terms
        own = self.task_terms(student, batch)
        other = self.task_terms(student, batch._replace(targets=_rolled(batch.targets)))
        return {name: own[name].scaled(share).plus(other[name].scaled(1 - share)) for name in own} | terms


def _rolled(targets: Any) -> Any:
    """The targets of the sample before, for every sample; in a mapping or tuple those of every head."""
    if isinstance(targets, Mapping):
        return {name: _rolled(each) for name, each in targets.items()}
    return tuple(map(_rolled, targets)) if isinstance(targets, tuple | list) else targets.roll(1, 0)
