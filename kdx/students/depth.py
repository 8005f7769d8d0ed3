"""Students with fewer layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from torch import nn
from typing_extensions import override

from kdx.errors import StudentError
from kdx.students.calls import Calls, record_calls
from kdx.students.derivation import Derivation
from kdx.students.edit import Edit, Kept, Origin, Plan

__all__ = ["ByDepth", "Depth", "block_sequences", "plan_depth"]

_BESIDE = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.Dropout, nn.Dropout2d)


class Depth(Edit):
    """Leaves out blocks that give what they take in shape; the others stay whole and keep their names.

    A block is a child of an ``nn.Sequential`` or ``nn.ModuleList``; in a sequence of plain layers it is a convolution
    or linear layer with the norm, activation and dropout behind it. Blocks that remain in one sequence are spread
    evenly, as in DistilBERT (Sanh et al. 2019, https://arxiv.org/abs/1910.01108); the first one always remains.

    Args:
        removed: names of the modules left out.
    """

    how: Literal["depth"] = "depth"
    removed: list[str]

    def build(self, model: nn.Module) -> None:
        """See :meth:`Edit.build`."""
        for name in self.removed:
            path, _, own = name.rpartition(".")
            try:
                delattr(model.get_submodule(path), own)
            except AttributeError:
                raise StudentError(f"{type(model).__name__} has no module {name!r} to leave out") from None

    def derive(self, model: nn.Module, inputs: Any) -> dict[str, Origin]:
        """See :meth:`Edit.derive`; what remains is copied whole."""
        self.build(model)
        return {}


class ByDepth(Derivation):
    """Fewer layers: blocks that keep the shape are left out, see :class:`Depth`.

    Paper: Sanh et al., DistilBERT, 2019, https://arxiv.org/abs/1910.01108.
    """

    edit = Depth

    @override
    def plan(self, model: nn.Module, inputs: Any) -> Plan:
        return plan_depth(model, inputs)


def plan_depth(model: nn.Module, inputs: Any) -> Plan:
    """All depths of a model; blocks go one at a time from the sequence that has the most left, the last of equals."""
    sequences = block_sequences(model, inputs)
    total = sum(len(blocks) - least for blocks, least in sequences)

    def edit(place: int) -> Depth:
        left = [len(blocks) for blocks, _ in sequences]
        spare = [len(blocks) - least for blocks, least in sequences]
        for _ in range(total - place):
            most = max((k for k in range(len(left)) if spare[k]), key=lambda k: (left[k], k))
            left[most] -= 1
            spare[most] -= 1
        removed: list[str] = []
        for (blocks, _), keep in zip(sequences, left, strict=True):
            kept = {k * len(blocks) // keep for k in range(keep)}
            removed += [name for k, block in enumerate(blocks) if k not in kept for name in block]
        return Depth(removed=removed)

    kept = []
    if not total:
        reason = "no child of an nn.Sequential or nn.ModuleList gives the shape it takes, so none can be left out"
        kept.append(Kept(type(model).__name__, reason))
    return Plan(total + 1, edit, kept)


def block_sequences(model: nn.Module, inputs: Any) -> list[tuple[list[list[str]], int]]:
    """The sequences of a model from which :class:`Depth` can leave out blocks, in the order of its modules.

    Args:
        model: any module; nothing about it changes.
        inputs: an example of what it takes, two samples or more.

    Returns:
        For every sequence its blocks, a block as the names of its modules, and how many of them have to stay.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> block_sequences(net, torch.zeros(2, 3))
        [([['1', '2']], 0)]
    """
    return list(_sequences(model, "", record_calls(model, inputs)))


def _sequences(module: nn.Module, path: str, calls: dict[str, Calls]) -> Iterator[tuple[list[list[str]], int]]:
    """Every sequence: its removable blocks, a block as the names of its modules, and how many have to stay.

    What is inside of a block is not looked at.
    """
    blocks: list[list[str]] = []
    if isinstance(module, nn.Sequential | nn.ModuleList):
        blocks, least = _blocks(module, path, calls)
        if len(blocks) > least:
            yield blocks, least
    inside = {name for block in blocks for name in block}
    for name, child in module.named_children():
        if path + name not in inside:
            yield from _sequences(child, f"{path}{name}.", calls)


def _blocks(sequence: nn.Module, path: str, calls: dict[str, Calls]) -> tuple[list[list[str]], int]:
    children = list(sequence.named_children())
    heavy = [name for name, child in children if any(True for _ in child.parameters()) and not _beside(child)]
    same = {name for name, _ in children if _keeps_shape(calls.get(path + name))}
    found: list[list[str]] = []
    for name, child in children:
        if name in heavy:
            found.append([path + name] if name in same else [])
        elif found and found[-1] and name in same and _beside(child):
            found[-1].append(path + name)
    removable = [block for block in found if block]
    return removable, int(len(removable) == len(heavy))


def _beside(child: nn.Module) -> bool:
    """Belongs to the layer before it: a norm, an activation, dropout."""
    return isinstance(child, _BESIDE) or (
        not any(True for _ in child.children()) and child.__module__.endswith("activation")
    )


def _keeps_shape(entry: Calls | None) -> bool:
    return entry is not None and entry.count == 1 and entry.takes is not None and entry.takes == entry.gives
