"""Offline distillation: a trained teacher, one way."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn
from typing_extensions import override

from kdx.batch import Batch, Sight
from kdx.capture import LOGITS, Output
from kdx.losses import Mean
from kdx.modes import evaluating
from kdx.schemes.apart import check_apart
from kdx.schemes.base import KnowledgeTerms, Task, setup_components, tap_components
from kdx.schemes.one_student import OneStudent
from kdx.schemes.shared_head import shared, shared_task_terms
from kdx.tap import TapName
from kdx.tasks.classification import cross_entropy
from kdx.teachers import Teacher, as_teacher

__all__ = ["Offline"]


class Offline(OneStudent):
    """A trained teacher teaches a student; nothing about the teacher changes.

    Total: ``w_task * task(z_s, y) + sum_k w_k * knowledge_k(student, teacher)``. While a teacher has nothing to teach
    yet (:attr:`kdx.teachers.Teacher.teaches`, a snapshot before the first one) the knowledge terms are left out.

    Args:
        student: the model to train.
        teacher: a trained model, held frozen in evaluation mode, or any :class:`kdx.teachers.Teacher`: an average, an
            earlier epoch or deeper layers of the student, an ensemble.
        task: see :class:`kdx.Scheme`.
        knowledge: see :class:`kdx.Scheme`.
        student_output: see :class:`kdx.Taps`.
        teacher_output: the same for the teacher.
        teacher_view: which inputs the teacher sees, where not those of the student, see :class:`kdx.teachers.Frozen`.
        task_tap: the tap in the student whose outputs the task loss reads; evaluation judges the model's output. For a
            student with a class head and a distillation head that answers with the mean of both (DeiT, Touvron et al.
            2021, https://arxiv.org/abs/2012.12877) it is the class head, as knowledge reads the other one.

    Raises:
        CaptureError: a component or ``task_tap`` taps a layer that the student or the teacher does not have.
        ValueError: a frozen teacher shares parameters or buffers with the student (tied weights, a view of one storage,
            one backbone in two models): training would change it.

    Paper: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, https://arxiv.org/abs/1503.02531.

    Example:
        >>> import torch, kdx
        >>> student, teacher = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
        >>> distil = kdx.Offline(student, teacher, knowledge={"kd": (0.9, kdx.SoftTargets(4.0))})
        >>> sorted(distil((torch.ones(4, 3), torch.zeros(4, dtype=torch.int64))).terms)
        ['kd', 'task']
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Teacher,
        *,
        task: Task = cross_entropy,
        knowledge: KnowledgeTerms | None = None,
        student_output: Output = None,
        teacher_output: Output = None,
        teacher_view: Sight = None,
        task_tap: TapName = LOGITS,
    ) -> None:
        super().__init__(student, task=task, knowledge=knowledge, student_output=student_output, task_tap=task_tap)
        if student is teacher:
            raise ValueError("student and teacher are one module; the teacher would be trained. Pass a copy")
        self.teacher = as_teacher(teacher, teacher_output, teacher_view)
        self.teacher.bind(self.responses)
        self.teacher.share_taps(self.taps)
        check_apart(self)
        tap_components(self.components, self.taps, self.teacher)
        self._spare_logits()

    def _spare_logits(self) -> None:
        """Says where nothing reads the logits; a subclass from elsewhere may read them itself."""
        if not type(self).__module__.startswith("kdx.") or any(each.reads_logits for each in self.components.values()):
            return
        self.teacher.spare_logits()
        if self.task is None or self.task_weight == 0:
            self.taps.spare_logits()

    @override
    def setup(self, batch: Batch | Any) -> None:
        batch = Batch.of(batch)
        with evaluating(self.student):
            captured = functools.cache(lambda: self.taps(batch.inputs))
            setup_components(self.components, captured, lambda: self.teacher.captured_for(batch, captured()))

    @override
    def terms(self, batch: Batch) -> dict[str, Mean]:
        student = self.taps(batch.inputs)
        if not self.teacher.teaches:
            return self.task_terms(student, batch)
        teacher = self.teacher.captured_for(batch, student)
        beside = shared(self, self.components, student, teacher, batch)
        terms = self.knowledge_terms(self.components, student, teacher, batch, beside=beside)
        task = self.task_terms(student, batch) if beside is None else shared_task_terms(self, beside, batch)
        return task | terms
