"""Students with fewer channels."""

from __future__ import annotations

import copy as copying
import functools
import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from kdx.capture import call
from kdx.errors import StudentError
from kdx.students.calls import plainly
from kdx.students.channels import Ids
from kdx.students.derivation import Derivation
from kdx.students.edit import Edit, Origin, Plan
from kdx.students.resize import get_tensor, reset, set_tensors
from kdx.students.trace import Trace
from kdx.students.tracing import trace_channels

__all__ = ["ByWidth", "Importance", "Width", "plan_width"]

Importance = Literal["l1", "l2"]
FINEST = 128


class Width(Edit):
    """Keeps a share of the channels of every layer, the same ones wherever they are shared.

    Channels that a residual sum, a concatenation, a depth-wise convolution, a norm or flattening ties together are
    kept or dropped as one (compare the dependency graph of Fang et al. 2023, https://arxiv.org/abs/2301.12900). Of
    each group of ``n`` channels ``round(ratio * n)`` are kept, at least one, for attention a multiple of the heads;
    those whose filters have the largest norm, summed over all layers that make the channel (Li et al. 2017,
    https://arxiv.org/abs/1608.08710). Every head of an ``nn.MultiheadAttention`` stays and keeps its strongest inner
    channels. Inputs and outputs of the model keep their sizes. The kept weights are the teacher's, unscaled.

    Args:
        ratio: share of the channels.
        importance: ``l1`` or ``l2`` norm of the filters.
        sizes: weight -> its new shape, ``-1`` where the size does not change.
        pads: module that pads channels -> how many before and after.
        pinned: modules that keep all channels they read and make, because their code holds sizes.
    """

    how: Literal["width"] = "width"
    ratio: float = Field(gt=0, le=1)
    importance: Importance = "l1"
    sizes: dict[str, list[int]] = Field({})
    pads: dict[str, tuple[int, int]] = Field({})
    pinned: list[str] = Field([])

    def build(self, model: nn.Module) -> None:
        """See :meth:`Edit.build`."""
        tensors = {}
        for name, shape in self.sizes.items():
            tensor = get_tensor(model, name).detach()
            fits = len(shape) == tensor.dim() and all(
                new == -1 or 1 <= new <= old for new, old in zip(shape, tensor.shape, strict=True)
            )
            if not fits:
                raise StudentError(f"weight {name!r} of shape {tuple(tensor.shape)} cannot be cut to {shape}")
            for dim, size in enumerate(shape):
                tensor = tensor if size == -1 else tensor.narrow(dim, 0, size)
            tensors[name] = tensor.clone()
        set_tensors(model, tensors)
        self._set_pads(model)
        owners = {name.rpartition(".")[0] for name in self.sizes}
        reset(module for name, module in reversed(list(model.named_modules())) if name in owners)

    def derive(self, model: nn.Module, inputs: Any) -> dict[str, Origin]:
        """See :meth:`Edit.derive`."""
        kept, _pads = _select(trace_channels(model, inputs, self.pinned), self.ratio, self.importance)
        if (sizes := _sizes(kept, model)) != self.sizes:
            raise StudentError(
                f"the channels of {type(model).__name__} are grouped otherwise than when this student was planned "
                f"({len(sizes)} weights change, {len(self.sizes)} were planned); derive it again"
            )
        tensors, origins = {}, {}
        for name, indices in kept.items():
            tensor = get_tensor(model, name).detach()
            before = tuple(tensor.shape)
            for dim, index in indices.items():
                tensor = tensor.index_select(dim, torch.as_tensor(index, device=tensor.device))
            tensors[name] = tensor.clone()
            origins[name] = Origin("sliced", tuple(tensor.shape), before)
        set_tensors(model, tensors)
        self._set_pads(model)
        return origins

    def _set_pads(self, model: nn.Module) -> None:
        for name, (before, after) in self.pads.items():
            module: Any = model.get_submodule(name)
            padding = list(module.padding)
            place = next(k for k in range(0, len(padding), 2) if padding[k] or padding[k + 1])
            padding[place : place + 2] = before, after
            module.padding = tuple(padding)


class ByWidth(Derivation):
    """Fewer channels in every layer, see :class:`Width`.

    Args:
        importance: norm of the filters by which channels are kept, ``l1`` or ``l2``.

    Raises:
        ValueError: another norm.

    Paper: Li et al., Pruning Filters for Efficient ConvNets, 2017, https://arxiv.org/abs/1608.08710.
    """

    edit = Width

    def __init__(self, *, importance: Importance = "l1") -> None:
        if importance not in ("l1", "l2"):
            raise ValueError(f"importance must be 'l1' or 'l2'; got {importance!r}")
        self.importance: Importance = importance

    @override
    def plan(self, model: nn.Module, inputs: Any) -> Plan:
        return plan_width(model, inputs, importance=self.importance)


def plan_width(model: nn.Module, inputs: Any, *, importance: Importance = "l1") -> Plan:
    """All widths of a model in steps of one channel of its widest layer, at most 128.

    One of them is tried, and what does not run with fewer channels is pinned.
    """
    pinned: list[str] = []
    while True:
        trace = trace_channels(model, inputs, pinned)
        widest = max((len(cell) for cell in _cells(trace)), default=0)
        steps = min(widest, FINEST) or 1
        edit = functools.partial(_edit, model, trace, steps, importance, pinned)
        new = [name for name in _failing(model, edit((steps - 1) // 2), inputs) if name not in pinned]
        if not new:
            return Plan(steps, edit, trace.kept)
        pinned = [*pinned, *new]


def _edit(model: nn.Module, trace: Trace, steps: int, importance: Importance, pinned: list[str], place: int) -> Width:
    ratio = (place + 1) / steps
    kept, pads = _select(trace, ratio, importance)
    return Width(ratio=ratio, importance=importance, sizes=_sizes(kept, model), pads=pads, pinned=pinned)


def _failing(model: nn.Module, edit: Width, inputs: Any) -> list[str]:
    """Names of the modules that an edit breaks; empty if all run.

    Where the innermost one is of PyTorch, the code that calls it holds the size: its module is the one, and with it
    every other of its class. If that is the model itself, only the inner module is named.
    """
    student = copying.deepcopy(model)
    edit.build(student)
    running: list[str] = []
    with ExitStack() as stack:
        for name, module in student.named_modules():
            before = module.register_forward_pre_hook(lambda *_, name=name: running.append(name))
            after = module.register_forward_hook(lambda *_: running.pop() and None)
            stack.callback(before.remove)
            stack.callback(after.remove)
        stack.enter_context(plainly(student))
        try:
            call(student, inputs)
        except Exception:  # whatever a module raises over sizes; running tells which one
            own = [name for name in running if not type(model.get_submodule(name)).__module__.startswith("torch.")]
            if own and own[-1]:
                kind = type(model.get_submodule(own[-1]))
                return [name for name, module in model.named_modules() if type(module) is kind]
            return [name for name in running[-1:] if name]
    return []


Selection = tuple[dict[str, dict[int, Ids]], dict[str, tuple[int, int]]]
"""Weight -> dimension -> the places kept along it; padding module -> sizes."""


def _select(trace: Trace, ratio: float, importance: Importance) -> Selection:
    heads = _heads(trace)
    scores = _scores(trace, importance)
    dropped: set[int] = set()
    for cell in _cells(trace):
        multiple = math.lcm(*(heads.get(int(root), 1) for root in cell))
        keep = max(round(ratio * len(cell) / multiple), 1) * multiple
        dropped |= _weakest(cell, scores, len(cell) - keep)
    for attention in trace.attention:
        stream = trace.channels.roots(attention.stream)
        share = sum(int(root) not in dropped for root in stream) / len(stream)
        for inner in (attention.query_key, attention.value):
            for head in np.split(trace.channels.roots(inner), attention.heads):
                dropped |= _weakest(head, scores, len(head) - round(share * len(head)))
    gone = np.array(sorted(dropped), dtype=np.int64)
    kept: dict[str, dict[int, Ids]] = {}
    for names, _tensor, labels in trace.watched():
        for dim, ids in enumerate(labels):
            stays = ~np.isin(trace.channels.roots(ids), gone) if ids is not None else np.ones(1, bool)
            if not stays.all():
                for name in names:
                    kept.setdefault(name, {})[dim] = np.flatnonzero(stays)
    pads = {}
    for name, sides in trace.pads.items():
        counts = [int((~np.isin(trace.channels.roots(ids), gone)).sum()) for ids in sides]
        if counts != [len(ids) for ids in sides]:
            pads[name] = (counts[0], counts[1])
    return kept, pads


def _cells(trace: Trace) -> list[Ids]:
    """Groups of channels that can be dropped and appear in the same dimensions of the same weights."""
    inner = {
        int(root)
        for attention in trace.attention
        for ids in (attention.query_key, attention.value)
        for root in trace.channels.roots(ids)
    }
    places: dict[int, set[tuple[str, int]]] = {}
    for names, _tensor, labels in trace.watched():
        for dim, ids in enumerate(labels):
            if ids is not None:
                for root in set(trace.channels.roots(ids[~trace.channels.fixed(ids)]).tolist()) - inner:
                    places.setdefault(root, set()).add((names[0], dim))
    cells: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for root, where in places.items():
        cells.setdefault(tuple(sorted(where)), []).append(root)
    return [np.array(sorted(roots)) for roots in cells.values()]


def _heads(trace: Trace) -> dict[int, int]:
    """Root of a token's channel -> what the number of channels must be a multiple of.

    Where the tokens of an attention consist of several groups (a concatenation, say), they are fixed, since every
    group would have to shrink by the same share exactly.
    """
    where = {int(root): place for place, cell in enumerate(_cells(trace)) for root in cell}
    found: dict[int, int] = {}
    for attention in trace.attention:
        roots = trace.channels.roots(attention.stream)
        if len({where.get(int(root)) for root in roots}) > 1:
            trace.channels.fix(attention.stream)
            continue
        for root in roots.tolist():
            found[root] = math.lcm(found.get(root, 1), attention.heads)
    return found


def _scores(trace: Trace, importance: Importance) -> dict[int, float]:
    """Norm of the filters that make a channel, summed over the weights that make it."""
    scores: dict[int, float] = {}
    for _names, tensor, labels in trace.watched():
        if tensor.dim() < 2 or labels[0] is None:
            continue
        norms: Tensor = torch.linalg.vector_norm(
            tensor.detach().flatten(1).double(), 1 if importance == "l1" else 2, dim=1
        )
        for root, norm in zip(trace.channels.roots(labels[0]).tolist(), norms.tolist(), strict=True):
            scores[root] = scores.get(root, 0.0) + norm
    return scores


def _weakest(roots: Ids, scores: dict[int, float], count: int) -> set[int]:
    """The ``count`` channels of the lowest score; of equal ones those that come last."""
    order: Sequence[int] = sorted(roots.tolist(), key=lambda root: (scores.get(root, 0.0), -root))
    return set(order[:count])


def _sizes(kept: dict[str, dict[int, Ids]], model: nn.Module) -> dict[str, list[int]]:
    return {
        name: [len(indices[dim]) if dim in indices else -1 for dim in range(get_tensor(model, name).dim())]
        for name, indices in kept.items()
    }
