"""The student of an earlier epoch."""

from __future__ import annotations

import copy
from typing import Any, Self

from torch import nn
from typing_extensions import override

from kdx.batch import Sight
from kdx.capture import Output, Taps, unwrap
from kdx.ranges import check_whole
from kdx.teachers.base import ModelTeacher

__all__ = ["Snapshot"]


class Snapshot(ModelTeacher):
    """The student as it was at an earlier epoch's end, in evaluation mode.

    A copy, the picture, is taken at the start of epochs ``every``, ``2 every``, ... and teaches until the next one;
    before the first there is nothing to teach (:attr:`teaches` is false). With ``every=1`` the student of the last
    epoch teaches; with the length of a cyclic learning rate it is snapshot distillation. The picture is saved with the
    scheme, moves with it and is never trained or exported. :func:`kdx.fit` calls ``scheme.epoch_start``.

    Args:
        student: the model to take pictures of; it is not changed.
        every: epochs from one picture to the next.
        output: see :class:`kdx.Taps`.
        view: which inputs it sees, where not those of the student, see :class:`kdx.teachers.Frozen`.

    Raises:
        ValueError: ``every`` is below 1.

    Paper: Yang et al., Snapshot Distillation: Teacher-Student Optimization in One Generation, CVPR 2019,
    https://arxiv.org/abs/1812.00123.

    Example:
        >>> import torch
        >>> student = torch.nn.Linear(1, 1)
        >>> teacher = Snapshot(student)
        >>> teacher.epoch_start(0, 2)
        >>> teacher.teaches
        False
        >>> teacher.epoch_start(1, 2)
        >>> teacher.teaches, teacher.picture.weight.equal(student.weight)
        (True, True)
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        every: int = 1,
        output: Output = None,
        view: Sight = None,
    ) -> None:
        super().__init__()
        self.every = check_whole("every", every, least=1, instead="it is a number of epochs")
        self._student = (student,)  # in a tuple, so that it is no submodule of its own teacher
        self.picture = copy.deepcopy(unwrap(student)).requires_grad_(False).eval()
        self.taps = Taps(self.picture, (), output=output)
        self.view = view
        self._taken = False

    @property
    @override
    def teaches(self) -> bool:
        return self._taken

    @override
    def epoch_start(self, epoch: int, epochs: int) -> None:
        if epoch == 0:
            self._taken = False
        elif epoch % self.every == 0:
            self.picture.load_state_dict(unwrap(self._student[0]).state_dict())
            self._taken = True

    @override
    def get_extra_state(self) -> dict[str, bool]:
        return {"taken": self._taken}

    @override
    def set_extra_state(self, state: Any) -> None:
        self._taken = bool(state["taken"])

    @override
    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.picture.eval()
        return self
