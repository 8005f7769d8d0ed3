"""Deeper layers of the student itself."""

from __future__ import annotations

from torch import nn
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import Captured, Output, Taps
from kdx.teachers.base import ModelTeacher

__all__ = ["Deeper"]


class Deeper(ModelTeacher):
    """Deeper layers of the student that teach shallower ones, read from the student's own forward pass.

    No second pass, no second model: in a scheme the student's taps capture both sides, and the teacher's
    tensors are detached, so that a term moves the shallower layers alone::

        kdx.Offline(net, Deeper(net), knowledge={"at": kdx.make("knowledge", "attention-transfer",
                                                                student="stage1", teacher="stage3")})

    Called by itself it runs the network, without gradient, in the mode it is in.

    Args:
        student: the network.
        output: see :class:`kdx.Taps`.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
        >>> teacher, taps = Deeper(net), Taps(net)
        >>> teacher.share_taps(taps)
        >>> teacher.tap(["1:input"])
        >>> captured = taps(torch.ones(4, 3))
        >>> teacher.captured_for(Batch(torch.ones(4, 3)), captured)["1:input"].requires_grad
        False
    """

    holds_mode = False  # the mode is the student's

    def __init__(self, student: nn.Module, *, output: Output = None) -> None:
        super().__init__()
        self.taps = Taps(student, (), output=output)

    @override
    def share_taps(self, taps: Taps) -> None:
        if taps.model is not self.taps.model:
            raise ValueError("Deeper teaches the network whose deeper layers it reads; give both the same module")
        self.taps = taps

    @override
    def captured_for(self, batch: Batch, student: Captured) -> Captured:
        return student.detach()
