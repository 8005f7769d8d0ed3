"""The contract of a student: the inputs and outputs that it must share with its teacher."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kdx.capture import Taps, call, unwrap
from kdx.errors import KdxError, StudentError
from kdx.modes import evaluating
from kdx.students.calls import tensors_in

__all__ = ["Contract"]


@dataclass(frozen=True)
class Contract:
    """The inputs a model takes, the outputs it gives, the taps it has.

    Args:
        inputs: an example, see :class:`kdx.Batch`.
        outputs: shape and dtype of every tensor it gives for the example.
        taps: taps that must be there, as :class:`kdx.Taps` reads them.

    Example:
        >>> teacher = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> contract = Contract.of(teacher, torch.zeros(4, 3), taps=["1"])
        >>> contract.check(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
        >>> contract.check(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5)))
        Traceback (most recent call last):
            ...
        kdx.errors.StudentError: the student gives (4, 5) torch.float32 where the teacher gives (4, 2) torch.float32
    """

    inputs: Any
    outputs: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    taps: tuple[str, ...] = ()

    @classmethod
    def of(cls, teacher: nn.Module, inputs: Any, taps: Iterable[str] = ()) -> Contract:
        """The contract that a model keeps; it runs once, in evaluation mode."""
        names = tuple(taps)
        Taps(teacher, names, output=lambda _: torch.empty(0))
        return cls(inputs, _outputs(teacher, inputs), names)

    def check(self, student: nn.Module) -> None:
        """Runs a student on the example, in evaluation mode.

        Raises:
            StudentError: it does not run, gives other shapes or types, or lacks a tap.
        """
        try:
            outputs = _outputs(student, self.inputs)
        except Exception as error:
            raise StudentError(
                f"the student does not run on what its teacher takes: {type(error).__name__}: {error}. A size that is "
                f"written in the code of {type(unwrap(student)).__name__} or of a module in it does not follow a new "
                "structure: read it from a tensor's shape instead, or derive in another way"
            ) from error
        if outputs != self.outputs:
            raise StudentError(f"the student gives {_text(outputs)} where the teacher gives {_text(self.outputs)}")
        try:
            Taps(student, self.taps, output=lambda _: torch.empty(0))
        except KdxError as error:
            raise StudentError(f"the student lacks a tap that it must keep: {error}") from error


def _outputs(model: nn.Module, inputs: Any) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
    with evaluating(model), torch.no_grad():
        return tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors_in(call(model, inputs)))


def _text(outputs: tuple[tuple[tuple[int, ...], torch.dtype], ...]) -> str:
    return ", ".join(f"{shape} {dtype}" for shape, dtype in outputs) or "no tensor"
