"""Which channels a narrower student keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from torch import Tensor

from kdx.errors import StudentError
from kdx.students.channels import Ids
from kdx.students.groups import ChannelGroup
from kdx.students.trace import Trace

__all__ = ["Dropped", "Selection", "dropped_at", "globally", "kept_places", "places_of", "uniformly", "with_inner"]

Dropped: TypeAlias = dict[str, list[list[int]]]
"""Weight -> for each of its dimensions the indices along it that are dropped, with all that must go with them."""
Selection: TypeAlias = tuple[dict[str, dict[int, Ids]], dict[str, tuple[int, int]]]
"""Weight -> dimension -> the indices kept along it; padding module -> sizes."""


def uniformly(trace: Trace, groups: Sequence[ChannelGroup], scores: Sequence[Tensor], ratio: float) -> set[int]:
    """The roots of the channels dropped where every group keeps the same share, those of the highest scores."""
    dropped: set[int] = set()
    for group, score in zip(groups, scores, strict=True):
        if not group.inner:
            keep = max(round(ratio * len(group) / group.multiple), 1) * group.multiple
            dropped |= set(_weakest(group, score)[: len(group) - keep])
    return dropped | _inside(trace, groups, scores, dropped)


def globally(groups: Sequence[ChannelGroup], scores: Sequence[Tensor], least: float) -> list[list[int]]:
    """The order in which channels are dropped where all groups compete: roots, several where they go together.

    Of every group the share ``least`` stays, and at least one channel (for attention one of each head). Inner channels
    of an attention are not among them, see :func:`with_inner`.
    """
    entries: list[tuple[float, list[int]]] = []
    for group, score in zip(groups, scores, strict=True):
        if group.inner:
            continue
        order, value = _weakest(group, score), dict(zip(group.roots.tolist(), score.tolist(), strict=True))
        stay = max(math.ceil(least * len(group) / group.multiple), 1)
        worst = -math.inf
        for start in range(0, len(group) - stay * group.multiple, group.multiple):
            block = order[start : start + group.multiple]
            worst = max(worst, sum(value[root] for root in block) / len(block))
            entries.append((worst, block))
    return [block for _score, block in sorted(entries, key=lambda entry: entry[0])]


def with_inner(trace: Trace, groups: Sequence[ChannelGroup], scores: Sequence[Tensor], roots: set[int]) -> set[int]:
    """Dropped channels together with the inner channels of attentions that must go with them."""
    return roots | _inside(trace, groups, scores, roots)


def _inside(trace: Trace, groups: Sequence[ChannelGroup], scores: Sequence[Tensor], dropped: set[int]) -> set[int]:
    """Inner channels of attentions: every head keeps the share that its tokens keep, its strongest."""
    value = {
        int(root): one
        for group, score in zip(groups, scores, strict=True)
        if group.inner
        for root, one in zip(group.roots, score.tolist(), strict=True)
    }
    gone: set[int] = set()
    for attention in trace.attention:
        stream = trace.channels.roots(attention.stream)
        share = sum(int(root) not in dropped for root in stream) / len(stream)
        for inner in (attention.query_key, attention.value):
            for head in np.split(trace.channels.roots(inner), attention.heads):
                order = sorted(head.tolist(), key=lambda root: (value[root], -root))
                gone |= set(order[: len(head) - round(share * len(head))])
    return gone


def _weakest(group: ChannelGroup, score: Tensor) -> list[int]:
    """The roots of a group, those of the lowest score first; of equal ones those that come last."""
    value = dict(zip(group.roots.tolist(), score.tolist(), strict=True))
    return sorted(value, key=lambda root: (value[root], -root))


def kept_places(trace: Trace, dropped: set[int]) -> Selection:
    """The indices that stay of every weight that loses channels, and the sizes of every padding."""
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


def places_of(trace: Trace, dropped: set[int]) -> Dropped:
    """Dropped channels written down: each once, at the first weight in which it lies."""
    found: Dropped = {}
    left = set(dropped)
    for names, tensor, labels in trace.watched():
        for dim, ids in enumerate(labels):
            for index, root in enumerate(trace.channels.roots(ids).tolist() if ids is not None and left else ()):
                if root in left:
                    left.discard(root)
                    found.setdefault(names[0], [[] for _ in range(tensor.dim())])[dim].append(index)
    return found


def dropped_at(trace: Trace, places: Dropped) -> set[int]:
    """The roots of dropped channels that were written down.

    Raises:
        StudentError: the model has no such weight or index, or the channel there cannot be dropped.
    """
    labels = {name: labels for names, _tensor, labels in trace.watched() for name in names}
    dropped: set[int] = set()
    for name, dims in places.items():
        for dim, indices in enumerate(dims):
            ids = labels[name][dim] if name in labels and dim < len(labels[name]) else None
            if not indices:
                continue
            chosen = np.array(indices, dtype=np.int64)
            there = ids is not None and bool(((chosen >= 0) & (chosen < len(ids))).all())
            if ids is None or not there or trace.channels.fixed(ids[chosen]).any():
                raise StudentError(
                    f"not all of the channels {indices[:5]} along dimension {dim} of {name!r} are there and can "
                    "be dropped; is the model built as it was when the student was planned?"
                )
            dropped |= set(trace.channels.roots(ids[chosen]).tolist())
    return dropped
