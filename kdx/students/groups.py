"""Groups of channels among which a narrower student chooses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from kdx.students.channels import Ids
from kdx.students.trace import Trace
from kdx.students.tracing import trace_channels

__all__ = ["ChannelGroup", "Place", "Scores", "channel_groups", "groups_of"]

Place: TypeAlias = tuple[str, int]
"""A dimension of a weight: the weight's name and the number of the dimension."""


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that lie in the same dimensions of the same weights, so that any of them can be dropped.

    A channel lies at every index that must go with it: of the filter that makes it, of the norm that scales it, of the
    columns of each layer that reads it, several of one dimension behind a flattening.

    Args:
        roots: one id of every channel in its trace, ``[C]``.
        owners: place -> for every index along it the number of the channel that lies there, ``-1`` where none does.
        multiple: how many channels stay must be a multiple of this, the heads of an attention.
        inner: whether these are inner channels of an ``nn.MultiheadAttention``. How many stay follows from its tokens,
            and every head keeps equally many.
    """

    roots: Ids
    owners: Mapping[Place, Ids]
    multiple: int = 1
    inner: bool = False

    def __len__(self) -> int:
        return len(self.roots)

    def sum(self, values: Mapping[Place, Tensor]) -> Tensor:
        """Adds up for each channel what is given at the indices where it lies; places without a value count nothing.

        Args:
            values: place -> a value for each index along it, ``[..., size]``; all with the same leading dimensions.

        Returns:
            ``[..., C]`` float64; ``[C]`` zeros if there is a value for no place of the group.
        """
        total = torch.zeros(len(self), dtype=torch.float64)
        for place, owners in self.owners.items():
            if place in values:
                value = values[place].detach().to("cpu", torch.float64)
                index = torch.as_tensor(np.flatnonzero(owners >= 0))
                channels = torch.as_tensor(owners)[index]
                parts = torch.zeros(*value.shape[:-1], len(self), dtype=torch.float64)
                total = total + parts.index_add(-1, channels, value.index_select(-1, index))
        return total


Scores: TypeAlias = Callable[[Sequence[ChannelGroup]], Sequence[Tensor]]
"""The importance of channels: groups -> for each group a score of every channel, ``[C]``; the lowest are dropped."""


def channel_groups(model: nn.Module, inputs: Any, pinned: Iterable[str] = ()) -> list[ChannelGroup]:
    """The groups of channels of a model, in the order in which they are found.

    Args:
        model: any module on one device; nothing about it changes.
        inputs: an example of what it takes, see :class:`kdx.Batch`; two samples or more.
        pinned: names of modules that keep all channels they read and make.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
        >>> (group,) = channel_groups(net, torch.zeros(2, 1, 4, 4))
        >>> len(group), sorted(place for place in group.owners if "running" not in place[0])
        (4, [('0.bias', 0), ('0.weight', 0), ('1.bias', 0), ('1.weight', 0), ('3.weight', 1)])
        >>> group.sum({("3.weight", 1): net[3].weight.abs().sum(0)}).shape
        torch.Size([4])
    """
    return groups_of(trace_channels(model, inputs, pinned))


def groups_of(trace: Trace) -> list[ChannelGroup]:
    """The groups of channels of a trace; those of an attention's tokens that cannot shrink evenly are fixed in it."""
    heads = _heads(trace)
    where = _places(trace)
    groups = []
    for roots in _cells(trace):
        multiple = math.lcm(*(heads.get(int(root), 1) for root in roots))
        groups.append(ChannelGroup(roots, _owners(trace, roots, where.get(int(roots[0]), [])), multiple))
    for attention in trace.attention:
        for ids in (attention.query_key, attention.value):
            roots = np.unique(trace.channels.roots(ids))
            groups.append(ChannelGroup(roots, _owners(trace, roots, where.get(int(roots[0]), [])), inner=True))
    return groups


def _owners(trace: Trace, roots: Ids, places: Iterable[Place]) -> dict[Place, Ids]:
    number = {int(root): channel for channel, root in enumerate(roots)}
    labels = {names[0]: labels for names, _tensor, labels in trace.watched()}
    found = {}
    for name, dim in places:
        ids = labels[name][dim]
        assert ids is not None
        found[name, dim] = np.array([number.get(int(root), -1) for root in trace.channels.roots(ids)], dtype=np.int64)
    return found


def _places(trace: Trace) -> dict[int, list[Place]]:
    """Root of a channel that can be dropped -> where it lies."""
    places: dict[int, list[Place]] = {}
    for names, _tensor, labels in trace.watched():
        for dim, ids in enumerate(labels):
            if ids is not None:
                for root in dict.fromkeys(trace.channels.roots(ids[~trace.channels.fixed(ids)]).tolist()):
                    places.setdefault(root, []).append((names[0], dim))
    return places


def _cells(trace: Trace) -> list[Ids]:
    """Roots of channels that can be dropped and lie at the same places, without those inside of an attention."""
    inner = {
        int(root)
        for attention in trace.attention
        for ids in (attention.query_key, attention.value)
        for root in trace.channels.roots(ids)
    }
    cells: dict[tuple[Place, ...], list[int]] = {}
    for root, where in _places(trace).items():
        if root not in inner:
            cells.setdefault(tuple(where), []).append(root)
    return [np.array(sorted(roots), dtype=np.int64) for roots in cells.values()]


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
