"""A teacher that is trained along with its student."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import Batch, Sight
from kdx.capture import Captured, Output, Taps
from kdx.teachers.base import ModelTeacher

__all__ = ["Live"]


class Live(ModelTeacher):
    """A model that learns from its own task while it teaches, and never from its student.

    It is a submodule: in ``parameters()``, in checkpoints and in its owner's mode. The result of :meth:`forward` is
    detached; a scheme that trains the teacher takes :meth:`captured`, which has the graph, and hands the student
    ``captured(batch).detach()``, so that one pass serves both.

    Args:
        model: the teacher.
        output: see :class:`kdx.Taps`.
        view: which inputs it sees, where not those of the student, see :class:`kdx.teachers.Frozen`.

    Example:
        >>> import torch
        >>> teacher = Live(torch.nn.Linear(3, 2))
        >>> batch = Batch(torch.ones(4, 3))
        >>> teacher(batch).logits.requires_grad, teacher.captured(batch).logits.requires_grad
        (False, True)
    """

    holds_mode = False  # it is trained

    def __init__(self, model: nn.Module, *, output: Output = None, view: Sight = None) -> None:
        super().__init__()
        self.model = model
        self.taps = Taps(model, (), output=output)
        self.view = view

    @property
    def output(self) -> Callable[[Any], Tensor] | None:
        """Reads the logits in the model's output, None for the usual ways."""
        return self.taps.output

    def captured(self, batch: Batch) -> Captured:
        """One pass with its graph, for the teacher's own task."""
        return self.taps(batch.seen(self.view).inputs)

    @override
    def forward(self, batch: Batch) -> Captured:
        return self.captured(batch).detach()
