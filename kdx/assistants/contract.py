"""What a student promises: the inputs it takes, the outputs it gives, the taps others read from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kdx import rng
from kdx.capture import LOGITS, Captured, Taps
from kdx.errors import CaptureError, ContractError
from kdx.schemes.base import evaluating

__all__ = ["Contract"]

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Contract:
    """Shapes without the batch dimension, that a model keeps however its structure was made.

    Scaled, pruned, quantised and searched students differ from the model they come from inside; whoever feeds them,
    reads their logits or taps them relies on this.

    Args:
        inputs: of one sample, as ``(1, 28, 28)``; None does not fix it (inputs that are no single tensor).
        outputs: of one sample's logits, as ``(10,)``.
        taps: tap -> shape of one sample's tensor; None asks for the tap alone, whatever its shape.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> contract = Contract.of(net, torch.zeros(1, 4), taps=["1"])
        >>> contract
        Contract(inputs=(4,), outputs=(3,), taps={'1': (8,)})
        >>> contract.check(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)), torch.zeros(1, 4))
        Traceback (most recent call last):
        kdx.errors.ContractError: ... breaks its contract: outputs of one sample are (2,), agreed (3,); tap '1' ...
    """

    inputs: Shape | None
    outputs: Shape
    taps: Mapping[str, Shape | None] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        example: Any,
        taps: Iterable[str] = (),
        *,
        output: Callable[[Any], Tensor] | None = None,
    ) -> Contract:
        """What a model keeps to now.

        Args:
            model: it is run once, in evaluation mode; nothing about it changes.
            example: inputs of a batch.
            taps: the taps that are part of it.
            output: see :class:`kdx.capture.Taps`.

        Raises:
            CaptureError: the model has no such tap.
            ContractError: a tap is a glob that stands for several modules.
        """
        taps = list(taps)
        captured = _run(model, example, taps, output)
        shapes = {tap: _tapped(captured, tap) for tap in taps}
        return cls(_one(example) if isinstance(example, Tensor) else None, _one(captured.logits), shapes)

    def check(self, model: nn.Module, example: Any, *, output: Callable[[Any], Tensor] | None = None) -> None:
        """Runs a model once and compares.

        Args:
            model: in evaluation mode while it runs; nothing about it changes.
            example: inputs of a batch of at least one sample.
            output: see :class:`kdx.capture.Taps`.

        Raises:
            ContractError: names everything that differs: inputs, outputs, rows, taps that are missing or of another
                shape.
        """
        wrong = []
        if self.inputs is not None and isinstance(example, Tensor) and _one(example) != self.inputs:
            wrong.append(f"inputs of one sample are {_one(example)}, agreed {self.inputs}")
        present = []
        for tap in self.taps:
            try:
                Taps(model, [tap], output=output).remove()
                present.append(tap)
            except CaptureError as error:
                wrong.append(f"tap {tap!r} is missing ({error})")
        try:
            captured = _run(model, example, present, output)
        except CaptureError as error:
            wrong.append(str(error))
        except (RuntimeError, ValueError, TypeError) as error:
            wrong.append(f"it does not take the agreed inputs {self.inputs} ({type(error).__name__}: {error})")
        else:
            if _one(captured.logits) != self.outputs:
                wrong.append(f"outputs of one sample are {_one(captured.logits)}, agreed {self.outputs}")
            if isinstance(example, Tensor) and len(captured.logits) != len(example):
                wrong.append(f"{len(example)} samples give {len(captured.logits)} outputs")
            for tap in present:
                found, agreed = _tapped(captured, tap), self.taps[tap]
                if agreed is not None and found != agreed:
                    wrong.append(f"tap {tap!r} of one sample is {found}, agreed {agreed}")
        if wrong:
            raise ContractError(f"{type(model).__name__} breaks its contract: {'; '.join(wrong)}")


def _run(model: nn.Module, example: Any, taps: list[str], output: Callable[[Any], Tensor] | None) -> Captured:
    reader = Taps(model, [LOGITS, *taps], output=output)
    try:
        with rng.isolated(), evaluating(model), torch.no_grad():
            return reader(example)
    finally:
        reader.remove()


def _tapped(captured: Captured, tap: str) -> Shape:
    found = captured.select(tap)
    if len(found) != 1:
        raise ContractError(f"tap {tap!r} stands for {len(found)} modules; name each of them in the contract")
    return _one(found[0])


def _one(tensor: Tensor) -> Shape:
    return tuple(tensor.shape[1:])
