"""Channels that belong together: which must be kept or dropped as one, and which cannot be dropped at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Attention", "Channels", "Ids", "Labels"]

Ids: TypeAlias = NDArray[np.int64]
Labels: TypeAlias = list[Ids | None]
"""The labels of a tensor's dimensions: the ids of the channels along each, or None where nothing can be dropped."""


class Channels:
    """Disjoint sets of channel ids (union-find).

    A channel of the teacher lives in many tensors: in the filter that makes it, the norm that scales it, the columns
    of every layer that reads it, and, through a residual sum, in the filters of other layers. All of these get ids,
    and ids that must go together are joined. A set is fixed if any of its members is.

    Example:
        >>> channels = Channels()
        >>> made, read = channels.new(3), channels.new(3)
        >>> channels.join(made, read)
        >>> channels.fix(read[:1])
        1
        >>> channels.roots(made) == channels.roots(read), channels.fixed(made)
        (array([ True,  True,  True]), array([ True, False, False]))
    """

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._fixed: set[int] = set()

    def new(self, count: int) -> Ids:
        """Fresh ids, each alone in its set."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def roots(self, ids: Ids) -> Ids:
        """One id that stands for the set of each id."""
        return np.array([self._root(int(one)) for one in ids], dtype=np.int64)

    def fixed(self, ids: Ids) -> NDArray[np.bool_]:
        """Whether the set of each id is fixed."""
        return np.array([self._root(int(one)) in self._fixed for one in ids], dtype=np.bool_)

    def join(self, first: Ids, second: Ids) -> None:
        """Makes ids at equal places members of one set."""
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            one, other = self._root(a), self._root(b)
            if one != other:
                self._parent[other] = one
                if other in self._fixed:
                    self._fixed.add(one)

    def fix(self, ids: Ids) -> int:
        """Forbids to drop these channels; how many could be dropped so far."""
        roots = {self._root(int(one)) for one in ids} - self._fixed
        self._fixed |= roots
        return len(roots)

    def match(self, labels: Sequence[Ids | None]) -> bool:
        """Joins dimensions that have to stay equal; what cannot be matched is fixed, and then the answer is False."""
        known = [ids for ids in labels if ids is not None]
        if len(known) == len(labels) and len({len(ids) for ids in known}) <= 1:
            for ids in known[1:]:
                self.join(known[0], ids)
            return True
        return not sum(self.fix(ids) for ids in known)

    def _root(self, one: int) -> int:
        parent = self._parent
        while parent[one] != one:
            parent[one] = one = parent[parent[one]]
        return one


@dataclass(frozen=True, slots=True)
class Attention:
    """Inner channels of an ``nn.MultiheadAttention``, which are as many as its tokens have.

    Args:
        heads: number of heads; each keeps equally many.
        stream: ids of the tokens' channels.
        query_key: ids of the rows of queries, and of keys.
        value: ids of the rows of values, and of the columns that read them.
    """

    heads: int
    stream: Ids
    query_key: Ids
    value: Ids
