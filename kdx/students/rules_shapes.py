"""Rules of functions that only move, merge or select channels; see :mod:`kdx.students.rules`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from kdx.students.channels import Ids, Labels
from kdx.students.trace import Trace

__all__ = [
    "PADS",
    "concatenate",
    "elementwise",
    "expand",
    "index",
    "pad",
    "permute",
    "reduce",
    "reshape",
    "spatial",
    "squeeze",
    "transpose",
    "unsqueeze",
]

PADS = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
"""Modules that pad with a constant (``nn.ZeroPad1d`` and so on among them) and hold how much."""


def elementwise(trace: Trace, out: Any, *args: Any, **kwargs: Any) -> bool:
    """Dimensions of equal size belong together; one of size 1 is spread over the others."""
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if not isinstance(out, Tensor):
        return False
    labels: Labels = []
    for dim in range(out.dim()):
        size = out.shape[dim]
        own: list[Ids | None] = []
        made = False
        for tensor in tensors:
            place = dim - out.dim() + tensor.dim()
            if place >= 0 and tensor.shape[place] == size:
                own.append(trace.of(tensor)[place])
                made = made or (own[-1] is not None and id(tensor) not in trace.weights)
        # a weight beside a plain dimension, as positions beside the length, is no news
        trace.match("adds or multiplies channels with something of a fixed size" if made else None, *own)
        labels.append(_shared(own))
    return trace.set(out, labels)


def _shared(labels: Sequence[Ids | None]) -> Ids | None:
    """The label of a dimension made from several: one for all if all have one."""
    return labels[0] if labels and all(ids is not None for ids in labels) else None


def spatial(trace: Trace, out: Any, input: Tensor, *_: Any, **__: Any) -> bool:
    """Pooling and resizing: everything after the channels may change its size."""
    if not isinstance(out, Tensor) or input.dim() < 3:
        return False
    labels = trace.of(input)
    for ids in labels[2:]:
        trace.fix(ids, "pools or resizes along channels")
    return trace.set(out, [*labels[:2], *[None] * (out.dim() - 2)])


def pad(trace: Trace, out: Tensor, input: Tensor, pad: Sequence[int], *_: Any, **__: Any) -> bool:
    """Padded channels are new ones, if a standard module holds how many."""
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


def reshape(trace: Trace, out: Tensor, input: Tensor, *_: Any, **__: Any) -> bool:
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


def permute(trace: Trace, out: Tensor, input: Tensor, *dims: Any, **kwargs: Any) -> bool:
    """Dimensions change places."""
    order = kwargs.get("dims", dims[0] if dims and not isinstance(dims[0], int) else dims)
    return trace.set(out, [trace.of(input)[dim] for dim in order])


def transpose(trace: Trace, out: Tensor, input: Tensor, dim0: int = -2, dim1: int = -1) -> bool:
    """Two dimensions change places."""
    labels = list(trace.of(input))
    labels[dim0], labels[dim1] = labels[dim1], labels[dim0]
    return trace.set(out, labels)


def unsqueeze(trace: Trace, out: Tensor, input: Tensor, dim: int) -> bool:
    """A new dimension of size 1."""
    labels = list(trace.of(input))
    labels.insert(dim if dim >= 0 else dim + out.dim(), None)
    return trace.set(out, labels)


def squeeze(trace: Trace, out: Tensor, input: Tensor, dim: Any = None) -> bool:
    """Dimensions of size 1 go."""
    if dim is None:
        gone = {place for place, size in enumerate(input.shape) if size == 1}
    else:
        asked = [dim] if isinstance(dim, int) else list(dim)
        gone = {place % input.dim() for place in asked if input.shape[place] == 1}
    return trace.set(out, [ids for place, ids in enumerate(trace.of(input)) if place not in gone])


def expand(trace: Trace, out: Tensor, input: Tensor, *_: Any, **__: Any) -> bool:
    """Dimensions of size 1 are repeated, others stay."""
    labels = trace.of(input)
    new: Labels = [None] * (out.dim() - input.dim())
    for place, (ids, size) in enumerate(zip(labels, input.shape, strict=True)):
        same = out.shape[place - input.dim()] == size
        if not same:
            trace.fix(ids)
        new.append(ids if same else None)
    return trace.set(out, new)


def reduce(trace: Trace, out: Any, input: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> bool:
    """The dimensions that are reduced go."""
    if not isinstance(out, Tensor):
        return False
    asked = range(input.dim()) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    gone = {place % input.dim() for place in asked}
    kept = [None if place in gone else ids for place, ids in enumerate(trace.of(input))]
    return trace.set(out, kept if keepdim else [ids for place, ids in enumerate(kept) if place not in gone])


def concatenate(trace: Trace, out: Tensor, tensors: Sequence[Tensor], dim: int = 0, **_: Any) -> bool:
    """Channels behind one another; everything else has to stay equal."""
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


def index(trace: Trace, out: Tensor, input: Tensor, index: Any) -> bool:
    """Whole dimensions stay; channels taken by number are fixed."""
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
