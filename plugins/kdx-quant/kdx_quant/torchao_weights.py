"""Linear layers whose weights are tensors of torchao, computed by its integer kernels."""

from __future__ import annotations

import copy

from torch import nn

from kdx.errors import StudentError
from kdx_quant.layers import Quantised, QuantisedLinear
from kdx_quant.rounding import RowRounding

__all__ = ["with_torchao"]


def with_torchao(student: nn.Module) -> nn.Module:
    """A copy of a trained student whose linear layers have weights of torchao.

    Each is an ordinary :class:`torch.nn.Linear` with an ``Int8Tensor`` as its weight, of the levels and steps that the
    student was trained with. Where inputs are rounded by rows (``int8-dynamic``, ``int8-int4-dynamic``), products are
    those of integers; where they are not (``int8-weights``, ``int4-weights``), the weight alone is held as int8.
    Weights are written and read by :func:`kdx.training.load_weights` and torchao's own functions.

    Args:
        student: quantised, see :class:`kdx_quant.quantise.Quantise`; it is not changed.

    Returns:
        The copy, in evaluation mode, its parameters frozen.

    Raises:
        ModuleNotFoundError: torchao is not installed, or too old.
        StudentError: a layer is quantised that is no linear one, or whose input has one range for all rows; it is
            named.

    Example:
        >>> import kdx
        >>> from kdx_quant.quantise import ByQuantise
        >>> net = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> student = kdx.students.derive(net, torch.zeros(2, 32), how=ByQuantise(to="int8-dynamic")).model
        >>> type(with_torchao(student)[0].weight).__name__
        'Int8Tensor'
    """
    try:
        from torchao.quantization import PerRow
        from torchao.quantization.quantize_.workflows import Int8Tensor, QuantizeTensorToInt8Kwargs
    except ImportError as error:
        raise ModuleNotFoundError(
            f'weights of torchao need torchao 0.18: pip install "torchao>=0.18,<0.19" ({error})', name="torchao"
        ) from error
    model = copy.deepcopy(student).eval().requires_grad_(False)
    for name, layer in model.named_modules():
        if not isinstance(layer, Quantised):
            continue
        rows = isinstance(layer.input_rounding, RowRounding)
        if not isinstance(layer, QuantisedLinear) or not (rows or layer.input_rounding is None):
            raise StudentError(
                f"torchao has a kernel for linear layers whose input is rounded by rows or not at all, and {name!r} is "
                "another layer; derive the student with to: int8-dynamic, int8-weights or the like, or write ONNX"
            )
        if rows and layer.input_rounding.bits != 8:
            raise StudentError(f"torchao rounds inputs to 8 bits, {name!r} has {layer.input_rounding.bits}; write ONNX")
        levels, steps = layer.weight_rounding.levels(layer.weight)
        weight = Int8Tensor(
            levels,
            steps[:, None].to(layer.weight.dtype),
            [1, levels.shape[1]],
            layer.weight.dtype,
            act_quant_kwargs=QuantizeTensorToInt8Kwargs(PerRow()) if rows else None,
        )
        del layer.weight_rounding, layer.input_rounding
        layer.__class__ = nn.Linear  # type: ignore[assignment]
        layer.weight = nn.Parameter(weight, requires_grad=False)
    return model
