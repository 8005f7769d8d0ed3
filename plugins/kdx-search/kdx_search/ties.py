"""Groups of channels that must have one size because the blocks between them can be left out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from kdx.students import Depth, Kept, Narrowing, block_sequences, channel_groups

__all__ = ["Blocks", "Ties", "sequences_of", "tied_groups"]


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of one sequence that can be left out, see :class:`kdx.students.Depth`.

    Args:
        sequence: name of the module that holds them, empty for the model itself.
        names: of the modules of each block, in order.
        least: how many have to stay.
    """

    sequence: str
    names: list[list[str]]
    least: int


def sequences_of(model: nn.Module, inputs: Any) -> list[Blocks]:
    """The sequences of a model in which blocks can be left out; ``inputs`` is an example of what it takes."""
    found = block_sequences(model, inputs)
    return [Blocks(names[0][0].rpartition(".")[0], names, least) for names, least in found]


@dataclass(frozen=True)
class Ties:
    """The choices that depend on each other.

    Args:
        groups: numbers of groups of channels that have one size.
        sequences: the sequences in which blocks can be left out.
        kept: what keeps its size for the others' sake, and why.
    """

    groups: list[list[int]]
    sequences: list[Blocks]
    kept: list[Kept]


def tied_groups(narrowing: Narrowing, sequences: Sequence[Blocks], inputs: Any) -> Ties:
    """Leaves out the blocks of every sequence and looks which channels then meet.

    A block that gives the shape it takes may still make other channels than it reads, as a plain convolution does;
    where it is left out, whoever read the one reads the other, so both need the same number.

    Args:
        narrowing: the channels of the whole model.
        sequences: in which blocks could be left out.
        inputs: an example of what the model takes.
    """
    free = [number for number, group in enumerate(narrowing.groups) if not group.inner]
    parent = {number: number for number in free}
    fixed: set[int] = set()
    kept: list[Kept] = []
    possible: list[Blocks] = []
    for blocks in sequences:
        met = _met(narrowing, blocks, inputs)
        if met is None:
            reason = "without its blocks, channels of groups that differ would meet"
            kept.append(Kept(blocks.sequence or type(narrowing.model).__name__, reason))
            continue
        possible.append(blocks)
        together, alone = met
        fixed |= alone
        for numbers in together:
            first, *others = (_root(parent, number) for number in numbers)
            for other in others:
                parent[other] = first
    fixed = {_root(parent, number) for number in fixed}
    found: dict[int, list[int]] = {}
    for number in free:
        if (root := _root(parent, number)) not in fixed:
            found.setdefault(root, []).append(number)
    return Ties(list(found.values()), possible, kept)


def _met(narrowing: Narrowing, blocks: Blocks, inputs: Any) -> tuple[list[list[int]], set[int]] | None:
    """The groups that meet when blocks are left out, and those that then meet something of a fixed size."""
    together: list[list[int]] = []
    fixed: set[int] = set()
    for count in range(blocks.least, len(blocks.names)):
        shorter = copy.deepcopy(narrowing.model)
        Depth(removed=[name for block in blocks.names[count:] for name in block]).build(shorter)
        there = {name for name, _ in [*shorter.named_parameters(), *shorter.named_buffers()]}
        covered = set()
        modules = {name for name, _ in shorter.named_modules()}
        for group in channel_groups(shorter, inputs, [name for name in narrowing.pinned if name in modules]):
            if group.inner:
                continue
            numbers: dict[int, None] = {}
            for place, owners in group.owners.items():
                if (number := _lying_at(narrowing, place, owners)) is None:
                    return None
                numbers[number] = None
                covered.add((number, place))
            together.append(list(numbers))
        for number, whole in enumerate(narrowing.groups):
            if not whole.inner and any(place[0] in there and (number, place) not in covered for place in whole.owners):
                fixed.add(number)
    return together, fixed


def _lying_at(narrowing: Narrowing, place: tuple[str, int], owners: Any) -> int | None:
    """The number of the group whose channels lie at the same indices of a place."""
    for number, group in enumerate(narrowing.groups):
        if place in group.owners and np.array_equal(group.owners[place], owners):
            return number
    return None


def _root(parent: dict[int, int], number: int) -> int:
    while parent[number] != number:
        number = parent[number]
    return number
