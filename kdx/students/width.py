"""Students with fewer channels."""

from __future__ import annotations

import copy as copying
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Literal

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
from kdx.students.groups import ChannelGroup, Place, Scores, groups_of
from kdx.students.resize import get_tensor, reset, set_tensors
from kdx.students.selection import Dropped, dropped_at, globally, kept_places, places_of, uniformly, with_inner
from kdx.students.trace import Trace
from kdx.students.tracing import trace_channels

__all__ = ["ByWidth", "Importance", "Spread", "Width", "plan_width"]

Importance = Literal["l1", "l2"]
Spread = Literal["uniform", "global"]
FINEST = 128


class Width(Edit):
    """Keeps a share of the channels of every layer, the same ones wherever they are shared.

    Channels that a residual sum, a concatenation, a depth-wise convolution, a norm or flattening ties together are
    kept or dropped as one (compare the dependency graph of Fang et al. 2023, https://arxiv.org/abs/2301.12900). Of
    each group of ``n`` channels ``round(ratio * n)`` are kept, at least one, for attention a multiple of the heads;
    those whose filters have the largest norm, summed over all layers that make the channel (Li et al. 2017,
    https://arxiv.org/abs/1608.08710). Every head of an ``nn.MultiheadAttention`` stays and keeps its strongest inner
    channels. Inputs and outputs of the model keep their sizes. The kept weights are the teacher's, unscaled.

    Which channels are kept can also be written down, as :func:`plan_width` does for scores from elsewhere.

    Args:
        ratio: share of the channels.
        importance: ``l1`` or ``l2`` norm of the filters; ``given`` where ``dropped`` says which channels go.
        dropped: weight -> for each dimension the indices of the channels that are dropped, each named once: what must
            go with it is found again. None drops those of the smallest norms.
        sizes: weight -> its new shape, ``-1`` where the size does not change.
        pads: module that pads channels -> how many before and after.
        pinned: modules that keep all channels they read and make, because their code holds sizes.
    """

    how: Literal["width"] = "width"
    ratio: float = Field(gt=0, le=1)
    importance: Importance | Literal["given"] = "l1"
    dropped: Dropped | None = None
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
        trace = trace_channels(model, inputs, self.pinned)
        groups = groups_of(trace)
        if self.dropped is not None:
            dropped = dropped_at(trace, self.dropped)
        elif self.importance == "given":
            raise StudentError("importance 'given' needs dropped, the channels that go; write l1 or l2 to choose them")
        else:
            dropped = uniformly(trace, groups, _norms(trace, groups, self.importance), self.ratio)
        kept, _pads = kept_places(trace, dropped)
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


def plan_width(
    model: nn.Module,
    inputs: Any,
    *,
    importance: Importance = "l1",
    scores: Scores | None = None,
    spread: Spread = "uniform",
    least: float = 0.0,
) -> Plan:
    """All widths of a model: in steps of one channel of its widest group, at most 128, or of one channel of the model.

    One of them is tried, and what does not run with fewer channels is pinned.

    Args:
        model: the teacher; it is left as it is.
        inputs: an example of what it takes, two samples or more.
        importance: norm of the filters by which channels are kept, if there are no ``scores``.
        scores: the importance of channels from elsewhere; the edits then say which channels go.
        spread: ``uniform`` keeps the same share of every group; under ``global`` all channels compete, so that layers
            may end up with unequal shares.
        least: under ``global`` the share of every group that stays.
    """
    pinned: list[str] = []
    while True:
        trace = trace_channels(model, inputs, pinned)
        plan = _plan(model, trace, pinned, importance, scores, spread, least)
        new = [name for name in _failing(model, plan.edit((plan.settings - 1) // 2), inputs) if name not in pinned]
        if not new:
            return plan
        pinned = [*pinned, *new]


def _plan(
    model: nn.Module,
    trace: Trace,
    pinned: list[str],
    importance: Importance,
    scores: Scores | None,
    spread: Spread,
    least: float,
) -> Plan:
    groups = groups_of(trace)
    found = list(scores(groups)) if scores is not None else _norms(trace, groups, importance)
    free = [group for group in groups if not group.inner]
    total = sum(map(len, free))
    order = globally(groups, found, least) if spread == "global" else []
    steps = min(max(map(len, free), default=0), FINEST) or 1

    def edit(place: int) -> Width:
        if spread == "global":
            going = {root for block in order[: len(order) - place] for root in block}
            dropped, ratio = with_inner(trace, groups, found, going), (total - len(going)) / max(total, 1)
        else:
            ratio = (place + 1) / steps
            dropped = uniformly(trace, groups, found, ratio)
        kept, pads = kept_places(trace, dropped)
        by_norm = scores is None and spread == "uniform"
        return Width(
            ratio=ratio or 1.0,
            importance=importance if by_norm else "given",
            dropped=None if by_norm else places_of(trace, dropped),
            sizes=_sizes(kept, model),
            pads=pads,
            pinned=pinned,
        )

    return Plan(len(order) + 1 if spread == "global" else steps, edit, trace.kept)


def _failing(model: nn.Module, edit: Edit, inputs: Any) -> list[str]:
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


def _norms(trace: Trace, groups: Sequence[ChannelGroup], importance: Importance) -> list[Tensor]:
    """Norm of the filters that make a channel, summed over the weights that make it."""
    norms: dict[Place, Tensor] = {
        (names[0], 0): torch.linalg.vector_norm(
            tensor.detach().flatten(1).double(), 1 if importance == "l1" else 2, dim=1
        )
        for names, tensor, labels in trace.watched()
        if tensor.dim() >= 2 and labels[0] is not None
    }
    return [group.sum(norms) for group in groups]


def _sizes(kept: dict[str, dict[int, Ids]], model: nn.Module) -> dict[str, list[int]]:
    return {
        name: [len(indices[dim]) if dim in indices else -1 for dim in range(get_tensor(model, name).dim())]
        for name, indices in kept.items()
    }
