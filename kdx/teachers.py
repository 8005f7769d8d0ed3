"""Teachers: whatever yields captured tensors for a batch."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import Captured, Taps

__all__ = ["Frozen", "Teacher"]


class Teacher(nn.Module, ABC):
    """Something that answers a batch with :class:`kdx.capture.Captured`, detached from its own parameters."""

    @classmethod
    def of(cls, value: nn.Module | Teacher, output: Callable[[Any], Tensor] | None = None) -> Teacher:
        """A teacher as it is, or a plain model as a :class:`Frozen` teacher."""
        if isinstance(value, Teacher):
            if output is not None:
                raise ValueError("teacher_output applies to a plain model; give output= to the Teacher itself")
            return value
        if isinstance(value, nn.Module):
            return Frozen(value, output=output)
        raise TypeError(f"teacher must be an nn.Module or a kdx Teacher, got {type(value).__name__}")

    @abstractmethod
    def tap(self, names: Iterable[str]) -> None:
        """Adds taps that later calls must capture."""

    @abstractmethod
    def forward(self, batch: Batch) -> Captured:
        """What the teacher says about a batch."""

    def epoch_start(self, epoch: int, epochs: int) -> None:  # most teachers do not follow the student
        """An epoch (from 0) begins. What a teacher changes here belongs in its parameters or buffers."""

    def step_end(self, step: int, total: int) -> None:
        """Optimizer step ``step`` (from 1) of ``total`` has moved the student."""


class Frozen(Teacher):
    """A model that only teaches: evaluation mode, no gradient, nothing about it changes.

    The model is deliberately not a submodule. So it is in no ``parameters()``, in no checkpoint and in no export, no
    ``train()`` of its owner reaches it and a distributed engine leaves it alone; it still follows its owner's device.

    Args:
        model: the teacher; it is set to evaluation mode and keeps its own flags otherwise.
        output: see :class:`kdx.capture.Taps`.
        train_mode: leaves the model in training mode, so that its BatchNorm normalises by the batch. Its running
            statistics are restored after every call. A few methods (OFD) want this; everywhere else it is a defect.
    """

    def __init__(
        self, model: nn.Module, *, output: Callable[[Any], Tensor] | None = None, train_mode: bool = False
    ) -> None:
        super().__init__()
        self.train_mode = train_mode
        model.train(train_mode)
        self._taps = Taps(model, output=output)

    @property
    def model(self) -> nn.Module:
        """The teacher's module."""
        return self._taps.model

    @override
    def tap(self, names: Iterable[str]) -> None:
        self._taps.add(names)

    @override
    def forward(self, batch: Batch) -> Captured:
        if self.model.training != self.train_mode:
            self.model.train(self.train_mode)
        before = copy.deepcopy(dict(self.model.named_buffers())) if self.train_mode else {}
        with torch.no_grad():
            captured = self._taps(batch.inputs)
            for name, buffer in before.items():
                self.model.get_buffer(name).copy_(buffer)
        return captured.detach()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.model._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self
