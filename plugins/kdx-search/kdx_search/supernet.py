"""A supernet: one set of weights for all sub-networks, trained under an outside teacher."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from kdx import Batch, Captured, Mean, Offline, SoftTargets, Taps
from kdx.knowledge import Knowledge
from kdx.schemes import KnowledgeTerms, Task
from kdx.tasks import cross_entropy
from kdx.teachers import Teacher
from kdx_search.best import limits_of
from kdx_search.space import Space
from kdx_search.sub_network import SubNetwork

__all__ = ["IN_PLACE", "Supernet"]

IN_PLACE = "in-place"
"""The term by which the sub-networks learn from the largest one."""
_READY = 64
"""Sub-networks that are kept between steps."""


class Supernet(Offline):
    """Trains all sub-networks of a student at once, on one set of weights; the teacher guides the largest.

    By the sandwich rule every step runs the largest sub-network, which is the student itself, the smallest one and
    ``samples`` drawn at random. The largest learns from the labels and the teacher, the others only from the largest
    (in-place distillation). Total, over the other sub-networks j:
    ``w task(z_L, y) + sum_k w_k knowledge_k(L, teacher) + v sum_j T^2 KL(sg p_L || p_j)``.

    The statistics of norms that the student keeps are those of the largest alone; of any other they are measured anew
    (:func:`kdx_search.recalibrate`) before it is evaluated.

    The sub-networks are found from the student's structure when the first batch is there, see
    :class:`kdx_search.Space`. Those of a step follow from ``seed`` and the number of the step, so a resumed run draws
    the same. After training, ``scheme.space`` says what there is, and ``kdx_search.SubNetwork(scheme.space, choice)``
    takes one out.

    Args:
        student: the largest sub-network.
        teacher: see :class:`kdx.Offline`.
        task: see :class:`kdx.Scheme`; it is that of the largest.
        knowledge: see :class:`kdx.Scheme`; what the largest learns from the teacher. A term named ``in-place`` is what
            the others learn from the largest instead: it reads the outputs on both sides.
        widths: shares of its channels that a group can have, see :meth:`kdx_search.Space.of`.
        depth: whether blocks can be left out.
        kernels: whether windows of convolutions can be smaller.
        keep: names of dimensions that are left as they are, globs allowed.
        params: a budget that some sub-network must meet, see :func:`kdx_search.best_choice`; nothing else comes of it.
        flops: likewise.
        samples: sub-networks drawn at random in every step.
        weight: v, of every other sub-network's term, without a term ``in-place`` of one's own.
        temperature: T of that term.
        seed: of the sub-networks drawn.
        student_output: see :class:`kdx.Taps`.
        teacher_output: the same for the teacher.

    Raises:
        ValueError: a number of samples below 0, or a term ``in-place`` that reads layers, which sub-networks have in
            other sizes.
        StudentError: in :meth:`setup`, see :meth:`kdx_search.Space.of`; or no sub-network meets the budget.

    Papers: Yu and Huang, Universally Slimmable Networks, ICCV 2019, https://arxiv.org/abs/1903.05134 (sandwich rule,
    in-place distillation, statistics measured afterwards); Cai et al., Once-for-All, ICLR 2020,
    https://arxiv.org/abs/1908.09791 (depth and kernel size).

    Example:
        >>> import kdx, torch
        >>> student, teacher = (kdx.make("model", "convnet", width=width, stages=2) for width in (8, 16))
        >>> supernet = Supernet(student, teacher, knowledge={"kd": (0.9, kdx.SoftTargets(4.0))}, samples=1)
        >>> batch = torch.randn(4, 1, 28, 28), torch.zeros(4, dtype=torch.int64)
        >>> supernet.setup(batch)
        >>> list(supernet(batch).terms)
        ['task', 'kd', 'smallest/in-place', 'random1/in-place']
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Teacher,
        *,
        task: Task = cross_entropy,
        knowledge: KnowledgeTerms | None = None,
        widths: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
        depth: bool = True,
        kernels: bool = True,
        keep: Sequence[str] = (),
        params: str | float | None = None,
        flops: str | float | None = None,
        samples: int = 2,
        weight: float = 1.0,
        temperature: float = 1.0,
        seed: int = 0,
        student_output: Any = None,
        teacher_output: Any = None,
    ) -> None:
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 0:
            raise ValueError(f"samples must be a whole number of sub-networks, 0 or more; got {samples!r}")
        super().__init__(
            student,
            teacher,
            task=task,
            knowledge={IN_PLACE: (weight, SoftTargets(temperature)), **(knowledge or {})},
            student_output=student_output,
            teacher_output=teacher_output,
        )
        lesson = self.components[IN_PLACE]
        if wrong := {*lesson.student_taps, *lesson.teacher_taps} - set(self.task_taps):
            raise ValueError(
                f"the term {IN_PLACE!r} reads {sorted(wrong)}, layers that every sub-network has in another size; let "
                f"it read the outputs, {', '.join(self.task_taps)}"
            )
        self.samples, self.seed = samples, seed
        self.space: Space | None = None
        self._budget = params, flops
        self._options: dict[str, Any] = {"widths": widths, "depth": depth, "kernels": kernels, "keep": keep}
        self._step = 0
        self._kept: dict[tuple[int, ...], Taps] = {}

    @property
    @override
    def ready(self) -> bool:
        return self.space is not None and super().ready

    @override
    def check_ready(self) -> None:
        if self.space is None:
            raise RuntimeError(
                "the sub-networks of the student are found from a batch: call scheme.setup(batch) once, before the "
                "first step (kdx.fit does)"
            )
        super().check_ready()

    @override
    def setup(self, batch: Batch | Any) -> None:
        batch = Batch.of(batch)
        if self.space is None:
            space = Space.of(self.student, batch.at(slice(0, 2)).inputs, **self._options)
            limits_of(space, *self._budget)
            self.space = space
        super().setup(batch)

    @override
    def advance(self, step: int, total: int) -> None:
        super().advance(step, total)
        self._step = step

    @override
    def terms(self, batch: Batch) -> dict[str, Mean]:
        largest = self.taps(batch.inputs)
        terms = self.task_terms(largest, batch)
        lesson: dict[str, Knowledge] = {}
        guidance: dict[str, Knowledge] = {}
        for name, component in self.components.items():
            (lesson if name == IN_PLACE else guidance)[name] = component
        if self.teacher.teaches and guidance:
            teacher = self.teacher.captured_for(batch, largest)
            terms |= self.knowledge_terms(guidance, largest, teacher, batch)
        others: dict[str, Mean] = self._in_place(lesson, largest.detach(), batch)
        return terms | others

    def choices(self, step: int) -> dict[str, dict[str, int]]:
        """The sub-networks of a step beside the largest: name -> choice.

        Args:
            step: of the optimizer, from 0.
        """
        assert self.space is not None, "setup finds the sub-networks"
        drawn = random.Random(f"{self.seed} {step}")
        found = {"smallest": self.space.smallest}
        return found | {f"random{k}": self.space.sample(drawn) for k in range(1, self.samples + 1)}

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # else each new sub-network would be compiled
    def _in_place(self, lesson: dict[str, Knowledge], taught: Captured, batch: Batch) -> dict[str, Mean]:
        terms: dict[str, Mean] = {}
        for name, taps in self._others():
            found = self.knowledge_terms(lesson, taps(batch.inputs), taught, batch)
            terms |= {f"{name}/{term}": mean for term, mean in found.items()}
        return terms

    def _others(self) -> Iterator[tuple[str, Taps]]:
        """The sub-networks of this step, each with what is captured in it."""
        assert self.space is not None
        for name, choice in self.choices(self._step).items():
            key = tuple(self.space.canonical(choice).values())
            if key not in self._kept:
                if len(self._kept) >= _READY:
                    self._kept.pop(next(iter(self._kept)))
                part = SubNetwork(self.space, choice, self.student)
                self._kept[key] = Taps(part, self.task_taps, output=self.taps.output)
            yield name, self._kept[key]
