"""Rules of what functions with weights do to channels; see :mod:`kdx.students.rules`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from kdx.students.trace import Trace

__all__ = [
    "attention",
    "batch_norm",
    "convolution",
    "embedding",
    "group_norm",
    "layer_norm",
    "linear",
    "matmul",
    "prelu",
]


def convolution(
    trace: Trace,
    out: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    """Filters make channels and read channels; a depth-wise convolution hands each channel on."""
    if input.dim() != weight.dim():
        return False
    read, made = trace.of(input)[1], trace.of(weight)
    for ids in made[2:]:
        trace.fix(ids)
    if groups == 1:
        trace.match(None, made[1], read)
    elif groups == input.shape[1] and weight.shape[1] == 1 and made[0] is not None:  # depth-wise
        trace.fix(made[1])
        trace.match(None, made[0], None if read is None else np.repeat(read, weight.shape[0] // groups))
    else:
        for ids in (made[0], made[1], read):
            trace.fix(ids, f"a convolution in {groups} groups")
    if bias is not None:
        trace.match(None, made[0], trace.of(bias)[0])
    return trace.set(out, [None, made[0], *[None] * (out.dim() - 2)])


def linear(trace: Trace, out: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Rows make channels, columns read them."""
    made, read = trace.of(weight)
    trace.match(None, read, trace.of(input)[-1])
    if bias is not None:
        trace.match(None, made, trace.of(bias)[0])
    return trace.set(out, [*trace.of(input)[:-1], made])


def matmul(trace: Trace, out: Tensor, input: Tensor, other: Tensor) -> bool:
    """Keeps rows of the first and columns of the second; the channels that are summed over have to stay equal."""
    if input.dim() < 2 or other.dim() < 2:
        return False
    first, second = trace.of(input), trace.of(other)
    trace.match("a matrix product along something of a fixed size", first[-1], second[-2])
    for ids in (*first[:-2], *second[:-2]):
        trace.fix(ids, "channels as a batch of matrix products")
    return trace.set(out, [*[None] * (out.dim() - 2), first[-2], second[-1]])


def embedding(trace: Trace, out: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> bool:
    """The columns of the table make channels; its rows are fixed."""
    rows, made = trace.of(weight)
    trace.fix(rows)
    return trace.set(out, [*[None] * (out.dim() - 1), made])


def batch_norm(
    trace: Trace,
    out: Tensor,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *_: Any,
    **__: Any,
) -> bool:
    """Scale, shift and running statistics go with their channel."""
    own = [trace.of(tensor)[0] for tensor in (running_mean, running_var, weight, bias) if tensor is not None]
    trace.match(None, trace.of(input)[1], *own)
    return trace.set(out, trace.of(input))


def layer_norm(
    trace: Trace,
    out: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *_: Any,
    **__: Any,
) -> bool:
    """The same, along the last dimension, where a standard module holds its size."""
    last = trace.of(input)[-1]
    written_in_module = isinstance(trace.module, nn.LayerNorm | nn.RMSNorm)
    if len(normalized_shape) != 1 or weight is None or not written_in_module:
        return False
    trace.match(None, last, *(trace.of(tensor)[0] for tensor in (weight, bias) if tensor is not None))
    return trace.set(out, trace.of(input))


def group_norm(
    trace: Trace,
    out: Tensor,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *_: Any,
    **__: Any,
) -> bool:
    """The same, if there is one group."""
    own = [trace.of(tensor)[0] for tensor in (weight, bias) if tensor is not None]
    if num_groups != 1:
        for ids in (trace.of(input)[1], *own):
            trace.fix(ids, f"a norm over {num_groups} groups of channels")
    else:
        trace.match(None, trace.of(input)[1], *own)
    return trace.set(out, trace.of(input))


def prelu(trace: Trace, out: Tensor, input: Tensor, weight: Tensor) -> bool:
    """One slope for each channel, or one for all."""
    if weight.numel() == 1:
        trace.fix_tensor(weight)
    else:
        trace.match(None, trace.of(input)[1], trace.of(weight)[0])
    return trace.set(out, trace.of(input))


def attention(
    trace: Trace,
    out: tuple[Tensor, Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    *rest: Any,
    **_: Any,
) -> bool:
    """Tokens keep one number of channels; queries go with keys, values with the columns that read them."""
    from kdx.students.channels import Attention

    in_proj_weight, in_proj_bias, bias_k, bias_v, add_zero_attn, _dropout, out_proj_weight, out_proj_bias = rest
    if in_proj_weight is None or bias_k is not None or bias_v is not None or add_zero_attn:
        return False
    (rows, stream), (made, columns) = trace.of(in_proj_weight), trace.of(out_proj_weight)
    if rows is None or stream is None or made is None or columns is None:
        return False
    third = len(rows) // 3
    trace.channels.join(rows[:third], rows[third : 2 * third])
    trace.channels.join(rows[2 * third :], columns)
    trace.match(None, stream, made, *(trace.of(tensor)[-1] for tensor in (query, key, value)))
    if in_proj_bias is not None:
        trace.match(None, rows, trace.of(in_proj_bias)[0])
    if out_proj_bias is not None:
        trace.match(None, made, trace.of(out_proj_bias)[0])
    trace.attention.append(Attention(num_heads, stream, rows[:third], columns))
    return trace.set(out[0], [*trace.of(query)[:-1], made])
