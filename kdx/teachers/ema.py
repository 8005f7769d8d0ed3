"""A moving average of the student."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Self

import torch
from torch import nn
from typing_extensions import override

from kdx.batch import Sight
from kdx.capture import Output, Taps, unwrap
from kdx.ranges import check_number
from kdx.teachers.base import ModelTeacher

__all__ = ["EMA"]


class EMA(ModelTeacher):
    """The mean teacher: an exponential moving average of the student's weights, in evaluation mode.

    After optimizer step t (from 1): ``m <- a_t m + (1 - a_t) w`` with ``a_t = min(decay, 1 - 1 / (t + 1))``, as in the
    authors' code, which counts the step before it averages. So at first m is the plain mean of the initial weights and
    those after each step; ``warm_up=False`` takes ``decay`` at once. BatchNorm's running statistics are averaged as the
    weights are (the authors let the teacher gather its own); counters are copied.

    The average starts as a copy of the student, is saved with the scheme, moves with it and is never trained or
    exported. :func:`kdx.fit` calls ``scheme.step_end``; in a loop of one's own call it after each optimizer step.

    Args:
        student: the model to follow; it is not changed.
        decay: a in [0, 1).
        warm_up: whether the first steps are a plain mean.
        output: see :class:`kdx.Taps`.
        view: which inputs it sees, where not those of the student, see :class:`kdx.teachers.Frozen`.

    Raises:
        ValueError: ``decay`` is outside [0, 1).

    Paper: Tarvainen, Valpola, Mean teachers are better role models, NeurIPS 2017, https://arxiv.org/abs/1703.01780;
    code: https://github.com/CuriousAI/mean-teacher (the teacher begins there with random weights of its own).

    Example:
        >>> student = torch.nn.Linear(1, 1, bias=False)
        >>> teacher = EMA(student, decay=0.75, warm_up=False)
        >>> start = student.weight.item()
        >>> _ = student.weight.data.add_(4.0)
        >>> teacher.step_end(1, 10)
        >>> round(teacher.average.weight.item() - start, 4)
        1.0
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        decay: float = 0.999,
        warm_up: bool = True,
        output: Output = None,
        view: Sight = None,
    ) -> None:
        super().__init__()
        self.decay = check_number("decay", decay, least=0, below=1)
        self.warm_up = warm_up
        self._student = (student,)  # in a tuple, so that it is no submodule of its own teacher
        self.average = copy.deepcopy(unwrap(student)).requires_grad_(False).eval()
        self.taps = Taps(self.average, (), output=output)
        self.view = view

    @override
    @torch.no_grad()
    def step_end(self, step: int, total: int) -> None:
        decay = min(self.decay, 1 - 1 / (step + 1)) if self.warm_up else self.decay
        student = unwrap(self._student[0])
        own = chain(self.average.parameters(), self.average.buffers())  # tied ones once
        for mean, now in zip(own, chain(student.parameters(), student.buffers()), strict=True):
            if mean.is_floating_point():
                mean.lerp_(now.to(mean.dtype), 1 - decay)
            else:
                mean.copy_(now)

    @override
    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.average.eval()
        return self
