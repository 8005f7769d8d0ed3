"""Formulas for the operations of quantised layers, which PyTorch's own counter does not know.

Their weights are packed objects or int8 tensors: https://docs.pytorch.org/docs/stable/quantization.html. One operation
on integers counts as one on floats.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kdx.analysis.packed import unpacked

__all__ = ["formulas", "multiplies"]

Shape = Sequence[int]


def formulas() -> dict[Any, Callable[..., int]]:
    """Packet of an operation -> its formula, as ``FlopCounterMode(custom_mapping=...)`` takes them."""
    found: dict[Any, Callable[..., int]] = {}
    for namespace, names, formula in _FORMULAS:
        packets = getattr(torch.ops, namespace)
        for name in names:
            if hasattr(packets, name):  # which there are depends on the build of PyTorch
                found[getattr(packets, name)] = formula
    return found


def multiplies(packet: Any) -> bool:
    """Whether an operation without a formula may hide products of matrices, so that a count without it is wrong.

    Of PyTorch's own namespaces the names tell; an operation of any other namespace may do anything.
    """
    namespace, _, name = str(packet).partition(".")
    if namespace == "aten":
        return name in _OF_ATEN
    if namespace in _BY_NAME:
        return re.search("linear|conv|mm|matmul|lstm|gru|rnn|attention", name) is not None
    return namespace not in ("prim", "prims", "profiler", "inductor", "rngprims", "_c10d_functional", "c10d")


_BY_NAME = {"quantized", "quantized_decomposed", "onednn", "mkldnn", "mkldnn_prepacked", "fbgemm", "torchao", "kdx"}
_OF_ATEN = {
    *("_cudnn_rnn", "lstm_mps", "miopen_rnn", "mkldnn_rnn_layer"),
    *("mkldnn_convolution", "mkldnn_linear", "miopen_convolution", "_nnpack_spatial_convolution"),
    *(
        "_cslt_sparse_mm",
        "_sparse_semi_structured_addmm",
        "_sparse_semi_structured_linear",
        "_sparse_semi_structured_mm",
    ),
    *("_grouped_mm", "_scaled_grouped_mm", "_mixed_dtypes_linear", "_trilinear", "_wrapped_quantized_linear_prepacked"),
    *("fbgemm_linear_fp16_weight", "fbgemm_linear_fp16_weight_fp32_activation", "fbgemm_linear_int8_weight"),
}
"""Operations of PyTorch that multiply matrices and for which neither its counter nor this file has a formula."""


def _rows_by_columns(inputs: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
    """Of a linear layer or a product of matrices: every output is a sum over the last axis of the inputs."""
    return 2 * math.prod(out_shape) * inputs[-1]


def _added(_bias: Shape, inputs: Shape, *rest: Any, out_shape: Shape, **__: Any) -> int:
    return _rows_by_columns(inputs, *rest, out_shape=out_shape)


def _convolution(_inputs: Shape, packed: Any, *_: Any, out_shape: Shape, **__: Any) -> int:
    weight = _filters(packed)  # [out, in / groups, ...]
    return 2 * math.prod(out_shape) * (weight.numel() // weight.shape[0])


def _transposed(inputs: Shape, packed: Any, *_: Any, **__: Any) -> int:
    weight = _filters(packed)  # [in, out / groups, ...]
    return 2 * math.prod(inputs) * (weight.numel() // weight.shape[0])


def _filters(packed: Any) -> Tensor:
    """The weight in a packed convolution, beside its strides and its bias."""
    return next(tensor for tensor in unpacked(packed) if tensor.is_quantized)


def _recurrent(inputs: Shape, *rest: Any, **__: Any) -> int:
    """Of a recurrent net: each of its matrices once for every step of every sample."""
    cells = next(each for each in rest if isinstance(each, list) and each and isinstance(each[0], torch.ScriptObject))
    weights = sum(tensor.numel() for cell in cells for tensor in unpacked(cell) if tensor.dim() == 2)
    return 2 * math.prod(inputs[:-1]) * weights


def _of(prefix: str, dimensions: str, *endings: str) -> list[str]:
    return [f"{prefix}{n}d{ending}" for n in dimensions for ending in ("", *endings)]


_LINEAR = ("", "_dynamic", "_relu", "_relu_dynamic", "_leaky_relu", "_tanh", "_dynamic_fp16", "_relu_dynamic_fp16")
_FORMULAS: list[tuple[str, list[str], Callable[..., int]]] = [
    (
        "aten",
        ["_int_mm", "_weight_int8pack_mm", "_weight_int4pack_mm", "_weight_int4pack_mm_for_cpu"],
        _rows_by_columns,
    ),
    ("aten", ["_dyn_quant_matmul_4bit", "mv", "dot", "vdot"], _rows_by_columns),
    ("aten", ["addmv"], _added),
    ("aten", ["quantized_lstm", "quantized_gru"], _recurrent),
    ("quantized", [f"linear{ending}" for ending in _LINEAR], _rows_by_columns),
    ("quantized", _of("conv", "123", "_relu", "_dynamic", "_add", "_add_relu"), _convolution),
    ("quantized", _of("conv_transpose", "123", "_dynamic"), _transposed),
    ("onednn", ["qlinear_pointwise"], _rows_by_columns),
]
