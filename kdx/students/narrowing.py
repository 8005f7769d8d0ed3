"""The channels of a model, and the narrower students that keep some of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from kdx.errors import StudentError
from kdx.students.channels import Ids
from kdx.students.edit import Kept
from kdx.students.groups import ChannelGroup, groups_of
from kdx.students.resize import get_tensor
from kdx.students.selection import Selection, kept_places, places_of, with_inner
from kdx.students.trace import Trace
from kdx.students.tracing import trace_channels
from kdx.students.width import Width, plan_width

__all__ = ["Narrowing"]


@dataclass(frozen=True, eq=False)
class Narrowing:
    """The channels of a model as groups, from which those that stay are chosen; one that is dropped goes everywhere.

    Args:
        model: whose channels they are; it is left as it is.
        groups: channels that lie in the same dimensions of the same weights, see :class:`kdx.students.ChannelGroup`.
        kept: modules that keep all their channels, and why.
        pinned: modules that keep all channels they read and make, because their code holds sizes.
        trace: what is known of the channels.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> narrowing = Narrowing.of(net, torch.zeros(2, 3))
        >>> narrowing.kept_indices({0: [0, 2]})["2.weight"][1]
        array([0, 2])
        >>> narrowing.edit({0: [0, 2]}).sizes
        {'0.weight': [2, -1], '0.bias': [2], '2.weight': [-1, 2]}
    """

    model: nn.Module
    groups: list[ChannelGroup]
    kept: list[Kept]
    pinned: list[str]
    trace: Trace
    _last: dict[Any, tuple[set[int], Selection]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, model: nn.Module, inputs: Any) -> Narrowing:
        """The channels of a model.

        Args:
            model: any module on one device.
            inputs: an example of what it takes, see :class:`kdx.Batch`; two samples or more.
        """
        plan = plan_width(model, inputs)
        edit = plan.edit(0)
        assert isinstance(edit, Width)
        trace = trace_channels(model, inputs, edit.pinned)
        groups = groups_of(trace)
        trace.labels = {key: labels for key, labels in trace.labels.items() if key in trace.weights}  # free the rest
        return cls(model, groups, trace.kept, edit.pinned, trace)

    def kept_indices(self, stay: Mapping[int, Collection[int]]) -> dict[str, dict[int, Ids]]:
        """The indices that stay of every weight: its name -> dimension -> indices along it.

        Args:
            stay: number of a group in :attr:`groups` -> numbers of its channels that stay; a group that is not named
                keeps all. How many inner channels of an attention stay follows from its tokens.

        Raises:
            StudentError: no channel of a group would stay, or not a multiple of an attention's heads.
        """
        return self._selected(stay)[1][0]

    def edit(self, stay: Mapping[int, Collection[int]]) -> Width:
        """The change of the structure that leaves these channels.

        Args:
            stay: see :meth:`kept_indices`.

        Raises:
            StudentError: see :meth:`kept_indices`.
        """
        dropped, (indices, pads) = self._selected(stay)
        total = sum(len(group) for group in self.groups)
        sizes = {
            name: [len(along[dim]) if dim in along else -1 for dim in range(get_tensor(self.model, name).dim())]
            for name, along in indices.items()
        }
        return Width(
            ratio=(total - len(dropped)) / max(total, 1) or 1.0,
            importance="given",
            dropped=places_of(self.trace, dropped),
            sizes=sizes,
            pads=pads,
            pinned=self.pinned,
        )

    def _selected(self, stay: Mapping[int, Collection[int]]) -> tuple[set[int], Selection]:
        """The channels that are dropped and what that leaves; the last answer is kept, as edit and indices both ask."""
        key = tuple((number, tuple(stay[number])) for number in sorted(stay))
        if key not in self._last:
            dropped = self._dropped(stay)
            self._last.clear()
            self._last[key] = dropped, kept_places(self.trace, dropped)
        return self._last[key]

    def _dropped(self, stay: Mapping[int, Collection[int]]) -> set[int]:
        dropped: set[int] = set()
        for number, channels in stay.items():
            group = self.groups[number]
            chosen = set(channels)
            if group.inner or not chosen or not chosen <= set(range(len(group))) or len(chosen) % group.multiple:
                name = next(iter(group.owners), ("", 0))[0]
                raise StudentError(
                    f"of the {len(group)} channels at {name!r} a multiple of {group.multiple}, at least one, can stay"
                    f"{' with the tokens of their attention' if group.inner else ''}; got {sorted(chosen)[:5]}"
                )
            dropped |= {int(root) for channel, root in enumerate(group.roots) if channel not in chosen}
        equal = [torch.zeros(len(group), dtype=torch.float64) for group in self.groups]
        return with_inner(self.trace, self.groups, equal, dropped)
