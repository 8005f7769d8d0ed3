"""The base of all teachers, and the policy that each one declares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import nn
from typing_extensions import override

from kdx.batch import Batch, Sight
from kdx.capture import Captured, Taps
from kdx.modes import hold
from kdx.responses import Responses

__all__ = ["ModelTeacher", "Teacher"]


class Teacher(nn.Module, ABC):
    """A source of :class:`kdx.Captured` tensors for a batch, detached from its own parameters.

    A teacher is never part of the exported student.
    """

    @abstractmethod
    def tap(self, names: Iterable[str]) -> None:
        """Adds taps that later calls must capture."""

    @abstractmethod
    def forward(self, batch: Batch) -> Captured:
        """The captured tensors of a batch."""

    inside_student: bool = False
    """Whether it is the student without a part of it, so that both share memory and modules on purpose."""

    @property
    def unchanging(self) -> nn.Module | None:
        """The model that teaches and must not change while it does; None for a teacher that follows the student, is
        trained along, or runs no model. It may share no memory with what is trained, and a run compares its
        fingerprints before and after.
        """
        return None

    @property
    def held_taps(self) -> frozenset[str]:
        """The taps whose tensors it never makes: they are :class:`kdx.LinearLogits`, see :class:`kdx.Head`."""
        return frozenset()

    @property
    def teaches(self) -> bool:
        """Whether it has something to teach yet; a scheme leaves its knowledge terms out until then."""
        return True

    def share_taps(self, taps: Taps) -> None:  # most teachers are not part of the student
        """Receives the student's taps, before :meth:`tap`; a teacher inside the student captures through them."""

    def spare_logits(self) -> None:  # most teachers run no language model
        """Receives, after :meth:`tap`, that nothing reads the logits, see :meth:`kdx.Taps.spare_logits`."""

    def bind(self, responses: Responses) -> None:  # most teachers only hand outputs on
        """Receives what the task of the scheme says of the outputs; an option of the teacher goes before it."""

    def captured_for(self, batch: Batch, student: Captured) -> Captured:
        """The captured tensors, once the student has run on the batch; a teacher inside the student reads its pass."""
        captured: Captured = self(batch)
        return captured

    def epoch_start(self, epoch: int, epochs: int) -> None:  # most teachers do not follow the student
        """Called when an epoch (from 0) begins. A change made here belongs in parameters, buffers or extra state."""

    def step_end(self, step: int, total: int) -> None:
        """Called after optimizer step ``step`` (from 1) of ``total`` has moved the student."""


class ModelTeacher(Teacher):
    """A teacher that runs one model without gradient, in evaluation mode; a subclass sets ``taps``, the taps on it.

    Attributes:
        view: which inputs it sees, see :meth:`kdx.Batch.seen`.
    """

    taps: Taps
    view: Sight = None
    holds_mode: ClassVar[bool] = True
    """Whether every submodule is put back into evaluation mode before the model answers; False leaves it in its own."""

    @property
    @override
    def held_taps(self) -> frozenset[str]:
        return self.taps.held_taps

    @override
    def tap(self, names: Iterable[str]) -> None:
        self.taps.add(names)

    @override
    @torch.no_grad()
    def forward(self, batch: Batch) -> Captured:
        if self.holds_mode:
            hold(self.taps.model)
        return self.taps(batch.seen(self.view).inputs).detach()
