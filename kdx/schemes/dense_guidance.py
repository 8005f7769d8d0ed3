"""Dense guidance: all larger models teach, and every step leaves one of them out at random."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import nn
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import Captured, Output
from kdx.features.operands import check_choice
from kdx.knowledge.base import Knowledge
from kdx.losses import Mean
from kdx.modes import evaluating
from kdx.schemes.apart import check_apart
from kdx.schemes.base import KnowledgeTerms, Task, components_in, own_copies, setup_components, tap_components
from kdx.schemes.one_student import OneStudent
from kdx.tasks.classification import cross_entropy
from kdx.teachers import Teacher, as_teacher

__all__ = ["DenseGuidance", "Reduction"]

Reduction = Literal["mean", "sum"]


class DenseGuidance(OneStudent):
    """A student learns from several frozen teachers at once; each step leaves some of them out.

    Total: ``w_task * task(z_s, y) + sum_k w_k * mean_{t in kept} knowledge_k(student, t)``, where ``kept`` are all but
    ``drop`` teachers drawn anew for each optimizer step. The mean over teachers keeps the weight of knowledge beside
    the task whatever their number. ``reduction="sum"`` adds them up, as the authors' code does, beside a task term that
    is counted once: k teachers then weigh k times. (Its KL is also a mean over classes, and its default weights are 0
    for the task and 1 for knowledge, T = 5.) A teacher that has nothing to teach yet
    (:attr:`kdx.teachers.Teacher.teaches`) is not among them.

    Which teachers a step leaves out follows from ``seed`` and the number of the step alone: every micro-batch of a
    step, every rank and a resumed run see the same draw. In a loop of one's own call ``advance(step, total)`` before
    each step, as for scheduled weights; without it every forward pass draws anew.

    Args:
        student: the model to train.
        teachers: name -> trained model or :class:`kdx.teachers.Teacher`, at least one.
        task: see :class:`kdx.Scheme`.
        knowledge: see :class:`kdx.Scheme`; every teacher gets its own copy of a component, so that adapters and stores
            are not shared. Terms are named ``<teacher>/<name>``.
        drop: teachers left out of a step; where there are no more than ``drop``, all but one.
        reduction: ``"mean"`` or ``"sum"`` over the teachers kept.
        seed: of the draws; None takes one from torch's generator and keeps it in the checkpoint.
        student_output: see :class:`kdx.Taps`.

    Raises:
        ValueError: there is no teacher or no knowledge, the student is one of the teachers, or ``drop`` is negative, or
            another reduction.

    Paper: Son et al., Densely Guided Knowledge Distillation using Multiple Teacher Assistants, ICCV 2021,
    https://arxiv.org/abs/2009.08825; code: https://github.com/wonchulSon/DGKD.

    Example:
        >>> import torch, kdx
        >>> teachers = {"large": torch.nn.Linear(3, 2), "middle": torch.nn.Linear(3, 2)}
        >>> kd = {"kd": kdx.SoftTargets(temperature=5.0)}
        >>> dense = DenseGuidance(torch.nn.Linear(3, 2), teachers, knowledge=kd, seed=0)
        >>> for step in range(3):
        ...     dense.advance(step, 3)
        ...     print(sorted(dense((torch.ones(4, 3), torch.zeros(4, dtype=torch.int64))).terms))
        ['middle/kd', 'task']
        ['middle/kd', 'task']
        ['large/kd', 'task']
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Mapping[str, nn.Module | Teacher],
        *,
        task: Task = cross_entropy,
        knowledge: KnowledgeTerms | None = None,
        drop: int = 1,
        reduction: Reduction = "mean",
        seed: int | None = None,
        student_output: Output = None,
    ) -> None:
        super().__init__(student, task=task, knowledge=knowledge, student_output=student_output)
        if not teachers:
            raise ValueError("teachers must name at least one teacher, got none")
        if not self.components:
            raise ValueError("knowledge must have at least one component, else the teachers say nothing; got none")
        if any(teacher is student for teacher in teachers.values()):
            raise ValueError("the student is one of the teachers, which would be trained. Pass a copy")
        if wrong := [name for name in teachers if not name or "." in name or "/" in name]:
            raise ValueError(f"teacher name {wrong[0]!r} is not allowed: give one without '.' and '/'")
        if drop < 0:
            raise ValueError(f"drop must be a number of teachers, 0 or more; got {drop}")
        check_choice("reduction", reduction, get_args(Reduction))
        self.reduction: Reduction = reduction
        self.teachers = nn.ModuleDict({name: as_teacher(teacher) for name, teacher in teachers.items()})
        self.knowledge = nn.ModuleDict({name: own_copies(self.components) for name in teachers})
        self.drop = min(drop, len(teachers) - 1)
        self.seed = int(torch.randint(2**31, ())) if seed is None else seed
        self._step: int | None = None
        self._passes = 0
        check_apart(self)
        for name, teacher in self._teachers().items():
            teacher.bind(self.responses)
            teacher.share_taps(self.taps)
            tap_components(self._components_of(name), self.taps, teacher)

    @override
    def advance(self, step: int, total: int) -> None:
        super().advance(step, total)
        self._step = step

    @property
    @override
    def leaves_out(self) -> bool:
        return self.drop > 0 or super().leaves_out

    def kept(self, step: int) -> list[str]:
        """The teachers that teach in optimizer step ``step`` (from 0), in their order."""
        names = list(self.teachers)
        left_out = random.Random(f"{self.seed}:{step}").sample(names, self.drop)
        return [name for name in names if name not in left_out]

    @override
    def get_extra_state(self) -> dict[str, int]:
        return {"seed": self.seed}

    @override
    def set_extra_state(self, state: Any) -> None:
        self.seed = state["seed"]

    @override
    def setup(self, batch: Batch | Any) -> None:
        batch = Batch.of(batch)
        with evaluating(self.student):
            captured = functools.cache(lambda: self.taps(batch.inputs))
            for name, teacher in self._teachers().items():
                answer = functools.partial(_answer, teacher, batch, captured)
                setup_components(self._components_of(name), captured, answer)

    @override
    def terms(self, batch: Batch) -> dict[str, Mean]:
        step = self._passes if self._step is None else self._step
        self._passes += 1
        student = self.taps(batch.inputs)
        terms = self.task_terms(student, batch)
        teachers = self._teachers()
        kept = [name for name in self.kept(step) if teachers[name].teaches]
        share = 1 / len(kept) if kept and self.reduction == "mean" else 1.0
        for name in kept:
            components = self._components_of(name)
            found = self.knowledge_terms(components, student, teachers[name].captured_for(batch, student), batch)
            terms |= {f"{name}/{term}": value.scaled(share) for term, value in found.items()}
        return terms

    def _teachers(self) -> dict[str, Teacher]:
        return {name: teacher for name, teacher in self.teachers.items() if isinstance(teacher, Teacher)}

    def _components_of(self, teacher: str) -> dict[str, Knowledge]:
        return components_in(self.knowledge[teacher])


def _answer(teacher: Teacher, batch: Batch, student: Callable[[], Captured]) -> Captured:
    return teacher.captured_for(batch, student())
