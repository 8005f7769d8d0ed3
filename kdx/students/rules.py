"""What torch functions do to channels, one rule each.

A rule gets the trace, the result and the function's own arguments; it labels the result, joins or fixes channels, and
returns True. A rule that returns False, or cannot take the arguments, leaves the function to the default: all channels
it reads are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from kdx.students.channels import Ids, Labels

if TYPE_CHECKING:
    from kdx.students.trace import Trace

__all__ = ["PADS", "RULES", "Rule"]

Rule = Callable[..., bool]
PADS = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
"""Modules that pad with a constant (``nn.ZeroPad1d`` and so on among them) and hold how much."""


def _elementwise(trace: Trace, out: Any, *args: Any, **kwargs: Any) -> bool:
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if not isinstance(out, Tensor):
        return False
    labels: Labels = []
    for dim in range(out.dim()):
        size = out.shape[dim]
        own: list[Ids | None] = []
        for tensor in tensors:
            place = dim - out.dim() + tensor.dim()
            if place >= 0 and tensor.shape[place] == size:
                own.append(trace.of(tensor)[place])
        trace.match("adds or multiplies channels with something of a fixed size", *own)
        labels.append(_shared(own))
    return trace.set(out, labels)


def _shared(labels: Sequence[Ids | None]) -> Ids | None:
    """The label of a dimension made from several: one for all if all have one."""
    return labels[0] if labels and all(ids is not None for ids in labels) else None


def _convolution(
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


def _linear(trace: Trace, out: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    made, read = trace.of(weight)
    trace.match(None, read, trace.of(input)[-1])
    if bias is not None:
        trace.match(None, made, trace.of(bias)[0])
    return trace.set(out, [*trace.of(input)[:-1], made])


def _matmul(trace: Trace, out: Tensor, input: Tensor, other: Tensor) -> bool:
    if input.dim() < 2 or other.dim() < 2:
        return False
    first, second = trace.of(input), trace.of(other)
    trace.match("a matrix product along something of a fixed size", first[-1], second[-2])
    for ids in (*first[:-2], *second[:-2]):
        trace.fix(ids, "channels as a batch of matrix products")
    return trace.set(out, [*[None] * (out.dim() - 2), first[-2], second[-1]])


def _embedding(trace: Trace, out: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> bool:
    rows, made = trace.of(weight)
    trace.fix(rows)
    return trace.set(out, [*[None] * (out.dim() - 1), made])


def _batch_norm(
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
    own = [trace.of(tensor)[0] for tensor in (running_mean, running_var, weight, bias) if tensor is not None]
    trace.match(None, trace.of(input)[1], *own)
    return trace.set(out, trace.of(input))


def _layer_norm(
    trace: Trace,
    out: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *_: Any,
    **__: Any,
) -> bool:
    last = trace.of(input)[-1]
    written_in_module = isinstance(trace.module, nn.LayerNorm | nn.RMSNorm)
    if len(normalized_shape) != 1 or weight is None or not written_in_module:
        return False
    trace.match(None, last, *(trace.of(tensor)[0] for tensor in (weight, bias) if tensor is not None))
    return trace.set(out, trace.of(input))


def _group_norm(
    trace: Trace,
    out: Tensor,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *_: Any,
    **__: Any,
) -> bool:
    own = [trace.of(tensor)[0] for tensor in (weight, bias) if tensor is not None]
    if num_groups != 1:
        for ids in (trace.of(input)[1], *own):
            trace.fix(ids, f"a norm over {num_groups} groups of channels")
    else:
        trace.match(None, trace.of(input)[1], *own)
    return trace.set(out, trace.of(input))


def _prelu(trace: Trace, out: Tensor, input: Tensor, weight: Tensor) -> bool:
    if weight.numel() == 1:
        trace.fix_tensor(weight)
    else:
        trace.match(None, trace.of(input)[1], trace.of(weight)[0])
    return trace.set(out, trace.of(input))


def _attention(
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
    from kdx.students.trace import Attention

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


def _spatial(trace: Trace, out: Any, input: Tensor, *_: Any, **__: Any) -> bool:
    """Pooling and resizing: everything after the channels may change its size."""
    if not isinstance(out, Tensor) or input.dim() < 3:
        return False
    labels = trace.of(input)
    for ids in labels[2:]:
        trace.fix(ids, "pools or resizes along channels")
    return trace.set(out, [*labels[:2], *[None] * (out.dim() - 2)])


def _pad(trace: Trace, out: Tensor, input: Tensor, pad: Sequence[int], *_: Any, **__: Any) -> bool:
    labels = list(trace.of(input))
    for place in range(len(pad) // 2):
        before, after = pad[2 * place], pad[2 * place + 1]
        dim, ids = input.dim() - 1 - place, labels[input.dim() - 1 - place]
        if ids is None or (before, after) == (0, 0):
            continue
        if (
            isinstance(trace.module, PADS)
            and min(before, after) >= 0
            and sum(map(bool, pad)) == bool(before) + bool(after)
        ):
            new = trace.channels.new(before), trace.channels.new(after)
            name = trace.running[-1][0]
            if name in trace.pads:  # the module runs again
                for old, one in zip(trace.pads[name], new, strict=True):
                    trace.channels.join(old, one)
            trace.pads[name] = new
            labels[dim] = np.concatenate([new[0], ids, new[1]])
        else:
            trace.fix(ids, "pads channels by a number that is written in its code; an nn.ZeroPad module would do")
            labels[dim] = None
    return trace.set(out, labels)


def _reshape(trace: Trace, out: Tensor, input: Tensor, *_: Any, **__: Any) -> bool:
    """Follows dimensions that stay or are merged; one that is split keeps its channels."""
    labels: Labels = [None] * out.dim()
    for ids in (ids for ids, size in zip(trace.of(input), input.shape, strict=True) if size == 1):
        trace.fix(ids)
    old = [dim for dim in range(input.dim()) if input.shape[dim] != 1]
    new = [dim for dim in range(out.dim()) if out.shape[dim] != 1]
    while old and new:
        one, other = [old.pop(0)], [new.pop(0)]
        while (have := math.prod(input.shape[d] for d in one)) != (want := math.prod(out.shape[d] for d in other)):
            if have < want:
                one.append(old.pop(0))
            else:
                other.append(new.pop(0))
        named = [(place, ids) for place, dim in enumerate(one) if (ids := trace.of(input)[dim]) is not None]
        if not named:
            continue
        if len(other) == 1 and len(named) == 1:
            place, ids = named[0]
            sizes = [input.shape[dim] for dim in one]
            shape = [-1 if k == place else 1 for k in range(len(one))]
            labels[other[0]] = np.broadcast_to(ids.reshape(shape), sizes).ravel()
        else:
            for _place, ids in named:
                trace.fix(ids, "reshapes one dimension of channels into several, as for heads")
    return trace.set(out, labels)


def _permute(trace: Trace, out: Tensor, input: Tensor, *dims: Any, **kwargs: Any) -> bool:
    order = kwargs.get("dims", dims[0] if dims and not isinstance(dims[0], int) else dims)
    return trace.set(out, [trace.of(input)[dim] for dim in order])


def _transpose(trace: Trace, out: Tensor, input: Tensor, dim0: int = -2, dim1: int = -1) -> bool:
    labels = list(trace.of(input))
    labels[dim0], labels[dim1] = labels[dim1], labels[dim0]
    return trace.set(out, labels)


def _unsqueeze(trace: Trace, out: Tensor, input: Tensor, dim: int) -> bool:
    labels = list(trace.of(input))
    labels.insert(dim if dim >= 0 else dim + out.dim(), None)
    return trace.set(out, labels)


def _squeeze(trace: Trace, out: Tensor, input: Tensor, dim: Any = None) -> bool:
    if dim is None:
        gone = {place for place, size in enumerate(input.shape) if size == 1}
    else:
        asked = [dim] if isinstance(dim, int) else list(dim)
        gone = {place % input.dim() for place in asked if input.shape[place] == 1}
    return trace.set(out, [ids for place, ids in enumerate(trace.of(input)) if place not in gone])


def _expand(trace: Trace, out: Tensor, input: Tensor, *_: Any, **__: Any) -> bool:
    labels = trace.of(input)
    new: Labels = [None] * (out.dim() - input.dim())
    for place, (ids, size) in enumerate(zip(labels, input.shape, strict=True)):
        same = out.shape[place - input.dim()] == size
        if not same:
            trace.fix(ids)
        new.append(ids if same else None)
    return trace.set(out, new)


def _reduce(trace: Trace, out: Any, input: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> bool:
    if not isinstance(out, Tensor):
        return False
    asked = range(input.dim()) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    gone = {place % input.dim() for place in asked}
    kept = [None if place in gone else ids for place, ids in enumerate(trace.of(input))]
    return trace.set(out, kept if keepdim else [ids for place, ids in enumerate(kept) if place not in gone])


def _concatenate(trace: Trace, out: Tensor, tensors: Sequence[Tensor], dim: int = 0, **_: Any) -> bool:
    dim %= out.dim()
    labels: Labels = []
    for place in range(out.dim()):
        own = [trace.of(tensor)[place] for tensor in tensors]
        if place != dim:
            trace.match("concatenates channels beside something of a fixed size", *own)
            labels.append(_shared(own))
        elif all(ids is None for ids in own):
            labels.append(None)
        else:
            parts = []
            for ids, tensor in zip(own, tensors, strict=True):
                parts.append(trace.channels.new(tensor.shape[place]) if ids is None else ids)
                if ids is None:
                    trace.channels.fix(parts[-1])
            labels.append(np.concatenate(parts))
    return trace.set(out, labels)


def _index(trace: Trace, out: Tensor, input: Tensor, index: Any) -> bool:
    items = list(index) if isinstance(index, tuple) else [index]
    if any(not (item is None or item is Ellipsis or isinstance(item, int | slice)) for item in items):
        return False
    if Ellipsis in items:
        place = items.index(Ellipsis)
        items[place : place + 1] = [slice(None)] * (input.dim() - sum(i is not None for i in items) + 1)
    items += [slice(None)] * (input.dim() - sum(item is not None for item in items))
    labels: Labels = []
    dims = iter(zip(trace.of(input), input.shape, strict=True))
    for item in items:
        if item is None:
            labels.append(None)
            continue
        ids, size = next(dims)
        whole = isinstance(item, slice) and item.indices(size) == (0, size, 1)
        if not whole:
            trace.fix(ids, None if id(input) in trace.weights else "takes some of its channels by number")
        if isinstance(item, slice):
            labels.append(ids if whole else None)
    return trace.set(out, labels)


_ELEMENTWISE = """
    relu relu_ relu6 gelu silu silu_ sigmoid sigmoid_ tanh tanh_ hardswish hardtanh hardsigmoid elu elu_ celu selu
    leaky_relu leaky_relu_ softplus softsign mish logsigmoid softmax log_softmax dropout dropout1d dropout2d dropout3d
    alpha_dropout feature_alpha_dropout add add_ sub sub_ mul mul_ div div_ true_divide __radd__ __rsub__ __rmul__
    __rtruediv__ __rpow__ rsub pow square sqrt rsqrt exp log abs neg sin cos erf clamp clamp_min clamp_max clip clone
    contiguous to float half double bfloat16 type type_as detach maximum minimum where masked_fill masked_fill_ copy_
    normalize reciprocal nan_to_num cpu cuda eq ne lt le gt ge addcmul lerp threshold hardshrink softshrink
"""
_SPATIAL = [
    f"{kind}{n}d" for n in (1, 2, 3) for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")
]
RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys([*_SPATIAL, "lp_pool1d", "lp_pool2d", "interpolate", "upsample"], _spatial),
    **dict.fromkeys(["conv1d", "conv2d", "conv3d"], _convolution),
    "linear": _linear,
    **dict.fromkeys(["matmul", "bmm", "mm", "__matmul__"], _matmul),
    "embedding": _embedding,
    **dict.fromkeys(["batch_norm", "instance_norm"], _batch_norm),
    **dict.fromkeys(["layer_norm", "rms_norm"], _layer_norm),
    "group_norm": _group_norm,
    "prelu": _prelu,
    "multi_head_attention_forward": _attention,
    "pad": _pad,
    **dict.fromkeys(["reshape", "view", "flatten", "unflatten", "ravel"], _reshape),
    "permute": _permute,
    **dict.fromkeys(["transpose", "swapaxes", "swapdims", "t", "T", "mT"], _transpose),
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    **dict.fromkeys(["expand", "expand_as"], _expand),
    **dict.fromkeys(["mean", "sum", "amax", "amin", "var", "std", "logsumexp"], _reduce),
    **dict.fromkeys(["cat", "concat", "concatenate"], _concatenate),
    "__getitem__": _index,
}
"""Name of a torch function -> its rule."""
