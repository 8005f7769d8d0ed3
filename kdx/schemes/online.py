"""Online distillation: teacher and student are trained together, end to end."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import Batch, Sight
from kdx.capture import Output, Taps
from kdx.losses import Mean
from kdx.modes import evaluating
from kdx.ranges import check_number
from kdx.schemes.base import KnowledgeTerms, Scheme, Task, setup_components, tap_components
from kdx.tasks.classification import cross_entropy
from kdx.teachers import Live, Teacher

__all__ = ["Online"]


class Online(Scheme):
    """A larger teacher and a student learn at the same time; the student also from what the teacher knows by now.

    Total: ``v * task(z_t, y) + w * task(z_s, y) + sum_k w_k * knowledge_k(student, stop_gradient(teacher))``, v the
    ``teacher_task``, w the task's weight. The teacher learns from the labels alone and each model is run once a step:
    no gradient passes from the student to the teacher. Adam and the like give the teacher the same step for any v; with
    SGD it scales its learning rate.

    Both are evaluated after each epoch and exported, the student first, as ``student`` and ``teacher``. There is no
    first stage to wait for, so that this is the scheme for data that keep coming: train on a loader without length and
    give ``steps`` to :func:`kdx.fit`.

    Args:
        student: the model that is wanted.
        teacher: a new or trained model, or a :class:`kdx.teachers.Live` one.
        task: see :class:`kdx.Scheme`; its weight is the student's.
        knowledge: see :class:`kdx.Scheme`.
        teacher_task: weight v > 0 of the teacher's own task loss.
        student_output: see :class:`kdx.Taps`.
        teacher_output: the same for the teacher.
        teacher_view: which inputs the teacher sees, where not those of the student, see :class:`kdx.teachers.Frozen`.

    Raises:
        ValueError: one module as both, no task, or ``teacher_task`` not above 0: the teacher would learn nothing.
        CaptureError: a component taps a layer that the student or the teacher does not have.

    Paper: online distillation as in Gou et al., Knowledge Distillation: A Survey, IJCV 2021, section 3.2,
    https://arxiv.org/abs/2006.05525.

    Example:
        >>> import torch, kdx
        >>> student, teacher = torch.nn.Linear(3, 2), torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Linear(8, 2))
        >>> online = Online(student, teacher, knowledge={"kd": kdx.SoftTargets(4.0)})
        >>> list(online((torch.ones(4, 3), torch.zeros(4, dtype=torch.int64))).terms)
        ['task', 'kd', 'teacher/task']
    """

    trains_teacher = True

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Live,
        *,
        task: Task = cross_entropy,
        knowledge: KnowledgeTerms | None = None,
        teacher_task: float = 1.0,
        student_output: Output = None,
        teacher_output: Output = None,
        teacher_view: Sight = None,
    ) -> None:
        super().__init__(task=task, knowledge=knowledge)
        if isinstance(teacher, Teacher) and not isinstance(teacher, Live):
            raise TypeError(
                f"teacher must be a model or a Live teacher, which is trained along; got {type(teacher).__name__}"
            )
        live = teacher if isinstance(teacher, Live) else Live(teacher, output=teacher_output, view=teacher_view)
        if live.model is student:
            raise ValueError("student and teacher are one module; pass two")
        if self.task is None:
            raise ValueError("the teacher learns from its task: give task, got None")
        self.student = student
        self.teacher = live
        self.teacher_task = check_number("teacher_task", teacher_task, above=0)
        self.taps = Taps(student, self.task_taps, output=student_output)
        self.teacher.tap(self.task_taps)
        tap_components(self.components, self.taps, self.teacher)

    @property
    @override
    def students(self) -> dict[str, nn.Module]:
        return {"student": self.student, "teacher": self.teacher.model}

    @override
    def output_of(self, student: str) -> Callable[[Any], Tensor] | None:
        return self.taps.output if student == "student" else self.teacher.output

    @override
    def setup(self, batch: Batch | Any) -> None:
        batch = Batch.of(batch)
        with evaluating(self.student, self.teacher):
            setup_components(
                self.components,
                functools.partial(self.taps, batch.inputs),
                functools.partial(self.teacher, batch),
            )

    @override
    def terms(self, batch: Batch) -> dict[str, Mean]:
        teacher, student = self.teacher.captured(batch), self.taps(batch.inputs)
        terms = self.task_terms(student, batch)
        terms |= self.knowledge_terms(self.components, student, teacher.detach(), batch)
        return terms | self.task_terms(teacher, batch, of="teacher", weight=self.teacher_task)
