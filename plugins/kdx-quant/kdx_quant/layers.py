"""Layers that compute with rounded weights and inputs in training."""

from __future__ import annotations

import copy
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from kdx_quant.rounding import InputRounding, RowRounding, WeightRounding

__all__ = [
    "KINDS",
    "Quantised",
    "QuantisedConv1d",
    "QuantisedConv2d",
    "QuantisedConv3d",
    "QuantisedLinear",
    "unrounded",
]


class Quantised(nn.Module):
    """A layer whose weight, and input if so chosen, are rounded: the base of all kinds.

    It is the layer itself, under its own name, with its own ``weight`` and ``bias`` in full precision, which are
    trained; ``weight_rounding`` and ``input_rounding`` are modules in it. Taps, state dicts and copies stay as they
    were but for the steps.
    """

    weight: Tensor
    bias: Tensor | None
    weight_rounding: WeightRounding
    input_rounding: InputRounding | RowRounding | None

    def operands(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Input and weight as the layer computes with them."""
        return x if self.input_rounding is None else self.input_rounding(x), self.weight_rounding(self.weight)


class _Conv(Quantised):
    _conv_forward: Any

    def forward(self, x: Tensor) -> Tensor:
        """See the class of torch of this name."""
        x, weight = self.operands(x)
        result: Tensor = self._conv_forward(x, weight, self.bias)
        return result


class QuantisedConv1d(_Conv, nn.Conv1d):
    """A :class:`torch.nn.Conv1d` with rounded weight and input, see :class:`Quantised`."""


class QuantisedConv2d(_Conv, nn.Conv2d):
    """A :class:`torch.nn.Conv2d` with rounded weight and input, see :class:`Quantised`."""


class QuantisedConv3d(_Conv, nn.Conv3d):
    """A :class:`torch.nn.Conv3d` with rounded weight and input, see :class:`Quantised`."""


class QuantisedLinear(Quantised, nn.Linear):
    """A :class:`torch.nn.Linear` with rounded weight and input, see :class:`Quantised`."""

    def forward(self, x: Tensor) -> Tensor:
        """See :class:`torch.nn.Linear`."""
        x, weight = self.operands(x)
        return F.linear(x, weight, self.bias)


KINDS: dict[type[nn.Module], type[Quantised]] = {
    nn.Conv1d: QuantisedConv1d,
    nn.Conv2d: QuantisedConv2d,
    nn.Conv3d: QuantisedConv3d,
    nn.Linear: QuantisedLinear,
}
"""Class of torch -> the one that takes its place."""


def unrounded(student: nn.Module) -> nn.Module:
    """A copy of a student that computes with its weights and inputs as they are, in layers of torch."""
    model, back = copy.deepcopy(student), {quantised: plain for plain, quantised in KINDS.items()}
    for layer in model.modules():
        if isinstance(layer, Quantised):
            del layer.weight_rounding, layer.input_rounding
            layer.__class__ = back[type(layer)]  # type: ignore[assignment]
    return model
