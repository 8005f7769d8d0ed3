"""Layers that hold the levels of their weights as integers, as files and frozen teachers do."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401  # registers quantized_decomposed, as torchao does

from kdx.errors import StudentError
from kdx_quant.layers import QuantisedConv1d, QuantisedConv2d, QuantisedConv3d, QuantisedLinear
from kdx_quant.rounding import InputRounding, RowRounding, WeightRounding

__all__ = ["STORED", "Stored", "converted", "store_layer"]

_OPS = torch.ops.quantized_decomposed


class Stored(nn.Module):
    """A layer that holds int8 ``levels`` ``[O, ...]`` and float32 ``steps`` ``[O]`` in place of its weight.

    It computes with ``levels * steps``. What it takes is rounded as in training: to uint8 levels of one step, or by
    rows. Both are written with the operators of PT2E (``quantized_decomposed``), which ``torch.export``, inductor's
    and ONNX's exporters know as quantised layers.
    """

    kdx_codes: ClassVar[Mapping[str, tuple[str, ...]]] = {"levels": ("steps",)}
    """For whoever counts weights, see :func:`kdx.analysis.count_stored`."""
    levels: Tensor
    steps: Tensor
    bits: int
    taken: tuple[float, int, int] | None
    """Step, level of 0 and highest level of what it takes, uint8; None where that is not rounded."""
    rows: RowRounding | None

    @property
    def weight(self) -> Tensor:
        """The weight that the levels stand for, float32."""
        least, most = -128, 127
        result: Tensor = _OPS.dequantize_per_channel(self.levels, self.steps, None, 0, least, most, torch.int8)
        return result

    def rounded(self, x: Tensor) -> Tensor:
        """The input as the layer computes with it."""
        if self.rows is not None:
            x = self.rows(x)
        if self.taken is not None:
            step, zero, most = self.taken
            x = _uint8(x, step, zero)
            if most < 255:
                # the first rounding is fused with the layer before and saturates at 255; the second has a step so much
                # finer that it uses all of uint8, as runtimes round a bias to multiples of this and the weight's step
                finer = 256 // (most + 1)
                x = _uint8(x.clamp(max=(most - zero) * step), step / finer, zero * finer)
        return x

    def extra_repr(self) -> str:
        """Shown in ``print(model)``."""
        taken = f", taken={self.taken}" if self.taken else ""
        return f"{tuple(self.levels.shape)}, bits={self.bits}{taken}"


def _uint8(x: Tensor, step: float, zero: int) -> Tensor:
    """The nearest of 256 levels, as a number."""
    levels = _OPS.quantize_per_tensor(x, step, zero, 0, 255, torch.uint8)
    result: Tensor = _OPS.dequantize_per_tensor(levels, step, zero, 0, 255, torch.uint8)
    return result


class _Conv(Stored):
    _conv_forward: Any
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """See the class of torch of this name."""
        result: Tensor = self._conv_forward(self.rounded(x), self.weight, self.bias)
        return result


class StoredConv1d(_Conv, nn.Conv1d):
    """A :class:`torch.nn.Conv1d` of integers, see :class:`Stored`."""


class StoredConv2d(_Conv, nn.Conv2d):
    """A :class:`torch.nn.Conv2d` of integers, see :class:`Stored`."""


class StoredConv3d(_Conv, nn.Conv3d):
    """A :class:`torch.nn.Conv3d` of integers, see :class:`Stored`."""


class StoredLinear(Stored, nn.Linear):
    """A :class:`torch.nn.Linear` of integers, see :class:`Stored`."""

    def forward(self, x: Tensor) -> Tensor:
        """See :class:`torch.nn.Linear`."""
        return F.linear(self.rounded(x), self.weight, self.bias)


STORED: dict[type[nn.Module], type[Stored]] = {
    nn.Conv1d: StoredConv1d,
    nn.Conv2d: StoredConv2d,
    nn.Conv3d: StoredConv3d,
    nn.Linear: StoredLinear,
    QuantisedConv1d: StoredConv1d,
    QuantisedConv2d: StoredConv2d,
    QuantisedConv3d: StoredConv3d,
    QuantisedLinear: StoredLinear,
}
"""Class of a layer -> the one that stores it."""


def store_layer(layer: Any, bits: int = 8) -> None:
    """Makes a layer store its weight as integers, in place; one that was trained as quantised keeps its own rounding.

    Args:
        layer: of a class in :data:`STORED`.
        bits: of its weight, where it has no rounding of its own.

    Raises:
        StudentError: the range of what it takes was never set, as no batch has been seen in training.
    """
    rounding = getattr(layer, "weight_rounding", None) or WeightRounding(layer.weight, bits, learned=False)
    inputs = getattr(layer, "input_rounding", None)
    if isinstance(inputs, InputRounding) and not inputs.is_set:
        raise StudentError("a quantised student must see a batch in training before it is stored; train it first")
    levels, steps = rounding.levels(layer.weight)
    layer.__class__ = STORED[type(layer)]
    for name in ("weight_rounding", "input_rounding"):
        layer._modules.pop(name, None)
    del layer._parameters["weight"]
    layer.register_buffer("levels", levels)
    layer.register_buffer("steps", steps)
    layer.bits = rounding.bits
    layer.taken = (*inputs.levels(), inputs.most) if isinstance(inputs, InputRounding) else None
    layer.rows = inputs if isinstance(inputs, RowRounding) else None


def converted(student: nn.Module) -> nn.Module:
    """A copy of a trained student whose quantised layers store integers: the model that its files hold.

    Args:
        student: with quantised layers, in full precision otherwise; it is not changed.

    Returns:
        The copy, in evaluation mode, its parameters frozen. It gives the student's outputs, but for values that lie in
        the middle of two levels, and cannot be trained.

    Raises:
        StudentError: see :func:`store_layer`.
    """
    from kdx_quant.layers import Quantised

    model = copy.deepcopy(student).eval().requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, Quantised):
            store_layer(layer)
    return model
