"""Which channels of a model belong together, as far as rules have said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from kdx.students.channels import Attention, Channels, Ids, Labels
from kdx.students.edit import Kept

__all__ = ["Trace"]


@dataclass(eq=False)
class Trace:
    """The channels of the tensors that a model reads and makes; rules label, join and fix them.

    Weights get ids for their channels when they are first used.

    Args:
        names: id of a weight (parameter or buffer) -> its names, several if it is tied.
        weights: id of a weight -> itself.
        pinned: modules that keep all channels they read and make.
        channels: which ids belong together.
        labels: id of a tensor -> itself, kept alive, and the ids along its dimensions.
        kept: what could not be dropped, and why.
        attention: every ``nn.MultiheadAttention`` that ran.
        pads: module that pads channels -> ids of those before and after.
        running: modules that run now, the innermost last.
    """

    names: dict[int, list[str]]
    weights: dict[int, Tensor]
    pinned: frozenset[str] = frozenset()
    channels: Channels = field(default_factory=Channels)
    labels: dict[int, tuple[Tensor, Labels]] = field(default_factory=dict)
    kept: list[Kept] = field(default_factory=list)
    attention: list[Attention] = field(default_factory=list)
    pads: dict[str, tuple[Ids, Ids]] = field(default_factory=dict)
    running: list[tuple[str, nn.Module]] = field(default_factory=list)

    def of(self, tensor: Any) -> Labels:
        """The labels of a tensor; a weight's are made when it is first seen."""
        if id(tensor) in self.labels:
            return self.labels[id(tensor)][1]
        if id(tensor) in self.weights:
            self.labels[id(tensor)] = tensor, [self.channels.new(size) for size in tensor.shape]
            return self.labels[id(tensor)][1]
        return [None] * tensor.dim()

    def set(self, tensor: Tensor, labels: Labels) -> bool:
        """Labels a result; False if the labels do not fit it, so that a rule can end with this."""
        sizes = [size if ids is None else len(ids) for ids, size in zip(labels, tensor.shape, strict=False)]
        if sizes != list(tensor.shape) or len(labels) != tensor.dim():
            return False
        if any(ids is not None for ids in labels):
            self.labels[id(tensor)] = tensor, labels
        return True

    def fix(self, ids: Ids | None, reason: str | None = None) -> None:
        """Fixes channels; a reason is written down if they were free."""
        if ids is not None and self.channels.fix(ids) and reason:
            self.note(reason)

    def fix_tensor(self, tensor: Tensor, reason: str | None = None) -> None:
        """Fixes all channels of a tensor."""
        for ids in self.of(tensor):
            self.fix(ids, reason)

    def match(self, reason: str | None, *labels: Ids | None) -> None:
        """Joins dimensions that have to stay equal."""
        if not self.channels.match(labels) and reason:
            self.note(reason)

    def note(self, reason: str) -> None:
        """Writes down why the running module keeps its channels."""
        name, module = self.pinned_by() or (self.running[-1] if self.running else ("", None))
        what = f"{name or 'the model'} ({type(module).__name__})" if module is not None else "the model"
        entry = Kept(what, reason)
        if entry not in self.kept:
            self.kept.append(entry)

    @property
    def module(self) -> nn.Module | None:
        """The innermost module that runs."""
        return self.running[-1][1] if self.running else None

    def watched(self) -> Iterator[tuple[list[str], Tensor, Labels]]:
        """Every weight that ran: its names, itself, its labels."""
        for key, tensor in self.weights.items():
            if key in self.labels:
                yield self.names[key], tensor, self.labels[key][1]

    def pinned_by(self) -> tuple[str, nn.Module] | None:
        """The running module that keeps all its channels, if there is one."""
        return next((entry for entry in self.running if entry[0] in self.pinned), None)

    def knows(self, tensor: Tensor) -> bool:
        """Whether a tensor has labels, or is a weight, which gets them."""
        return id(tensor) in self.labels or id(tensor) in self.weights
