"""The sub-networks that a model can be cut down to."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from kdx.analysis import count_flops
from kdx.students import Contract, Depth, Edit, Kept, Narrowing, StudentError
from kdx_search.kernel import Kernel, elastic_windows
from kdx_search.ties import Blocks, sequences_of, tied_groups

__all__ = ["Choice", "Dimension", "Space", "SubCost"]

Choice: TypeAlias = Mapping[str, int]
"""A sub-network: name of a dimension -> its size; a dimension that is not named has its largest one."""


@dataclass(frozen=True, slots=True)
class Dimension:
    """One size of a model that can be chosen.

    Args:
        name: its kind and the module it is about: ``width:stage1.conv1`` is how many channels that layer makes,
            ``depth:layer2`` how many blocks of a sequence run, ``kernel:stem`` how wide the window of a convolution is.
        kind: ``width``, ``depth`` or ``kernel``.
        sizes: that it can have, rising; the last one is the model's own.
    """

    name: str
    kind: Literal["width", "depth", "kernel"]
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SubCost:
    """The cost of a sub-network.

    Args:
        parameters: how many it has.
        flops: operations of one sample, see :func:`kdx.analysis.count_flops`.
    """

    parameters: int
    flops: int


@dataclass(eq=False)
class Space:
    """The sub-networks that a model can be cut down to: fewer channels, fewer blocks, smaller windows.

    Of every group of channels that belong together the first ones stay, of every sequence of blocks the first ones, of
    a convolution's window the centre, as in slimmable and once-for-all networks (Yu and Huang 2019,
    https://arxiv.org/abs/1903.05134; Cai et al. 2020, https://arxiv.org/abs/1908.09791). So a smaller sub-network's
    weights are part of a larger one's. What cannot be followed keeps its size and is named in :attr:`kept`.

    Make one with :meth:`of`.

    Args:
        model: the largest one, whose weights the sub-networks share; it is left as it is.
        inputs: an example of what it takes.
        dimensions: name -> what can be chosen.
        kept: parts that keep their size, and why.
        narrowing: the channels.
        groups: dimension of kind ``width`` -> the numbers of its groups of channels.
        blocks: dimension of kind ``depth`` -> its sequence.

    Example:
        >>> import kdx
        >>> space = Space.of(kdx.make("model", "convnet", width=8, stages=2), torch.zeros(2, 1, 28, 28))
        >>> {name: dimension.sizes for name, dimension in space.dimensions.items()}
        {'width:stage1.conv1': (2, 4, 6, 8), 'width:stage2.conv1': (4, 8, 12, 16)}
        >>> len(space), space.cost(space.largest).parameters, space.cost({"width:stage1.conv1": 2}).parameters
        (16, 1442, 512)
    """

    model: nn.Module = field(repr=False)
    inputs: Any = field(repr=False)
    dimensions: dict[str, Dimension]
    kept: list[Kept]
    narrowing: Narrowing = field(repr=False)
    groups: dict[str, list[int]] = field(repr=False)
    blocks: dict[str, Blocks] = field(repr=False)
    _costs: dict[tuple[int, ...], SubCost] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        inputs: Any,
        *,
        widths: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
        depth: bool = True,
        kernels: bool = True,
        keep: Sequence[str] = (),
    ) -> Space:
        """Finds what of a model can be chosen; every dimension is tried alone at its smallest, and all together.

        Args:
            model: any module on one device, the largest sub-network.
            inputs: an example of what it takes, see :class:`kdx.Batch`; two samples or more.
            widths: shares of the channels that a group can have, in (0, 1]; ``(1.0,)`` leaves all widths as they are.
            depth: whether blocks can be left out.
            kernels: whether windows of convolutions can be smaller.
            keep: names of dimensions that are left as they are, globs allowed, as ``width:stage1.*`` or ``depth:*``.

        Raises:
            ValueError: a share of channels is not in (0, 1], or ``keep`` names no dimension.
            StudentError: nothing can be chosen (what stands in the way is named), or a sub-network does not run or
                gives outputs of another shape; the dimension is named.
        """
        for share in widths:
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
                raise ValueError(f"widths must be shares of the channels in (0, 1], as (0.5, 1.0); got {share!r}")
        with torch.random.fork_rng(devices=[]):
            narrowing = Narrowing.of(model, inputs)
            sequences = sequences_of(model, inputs) if depth else []
            ties = tied_groups(narrowing, sequences, inputs)
            windows, firm = elastic_windows(model, inputs) if kernels else ({}, [])
        space = cls(model, inputs, {}, [*narrowing.kept, *ties.kept, *firm], narrowing, {}, {})
        for name, numbers in _named(narrowing, ties.groups):
            sizes = _widths(narrowing, numbers, widths)
            space.dimensions[name] = Dimension(name, "width", sizes)
            space.groups[name] = numbers
        for blocks in ties.sequences:
            name = f"depth:{blocks.sequence or 'model'}"
            space.dimensions[name] = Dimension(name, "depth", tuple(range(blocks.least, len(blocks.names) + 1)))
            space.blocks[name] = blocks
        for layer, sizes in windows.items():
            space.dimensions[f"kernel:{layer}"] = Dimension(f"kernel:{layer}", "kernel", sizes)
        space._leave(keep)
        if not space.dimensions:
            shown = "; ".join(f"{kept.module}: {kept.reason}" for kept in space.kept[:3])
            raise StudentError(
                f"nothing about {type(model).__name__} can be chosen: no group of channels, no block and no window has "
                f"a second size{f' ({shown})' if shown else ''}; allow more widths, or take a model of standard layers"
            )
        space._try_all()
        return space

    def __len__(self) -> int:
        return math.prod(len(dimension.sizes) for dimension in self.dimensions.values())

    @property
    def largest(self) -> dict[str, int]:
        """The whole model."""
        return {name: dimension.sizes[-1] for name, dimension in self.dimensions.items()}

    @property
    def smallest(self) -> dict[str, int]:
        """Every dimension at its smallest."""
        return {name: dimension.sizes[0] for name, dimension in self.dimensions.items()}

    def sample(self, generator: random.Random) -> dict[str, int]:
        """A sub-network drawn evenly in every dimension."""
        return {name: generator.choice(dimension.sizes) for name, dimension in self.dimensions.items()}

    def check(self, choice: Choice) -> dict[str, int]:
        """The same choice with every dimension named, in the order of :attr:`dimensions`.

        Raises:
            StudentError: there is no such dimension or size.
        """
        for name, size in choice.items():
            if name not in self.dimensions:
                raise StudentError(f"there is no dimension {name!r} to choose; there are {', '.join(self.dimensions)}")
            if size not in self.dimensions[name].sizes:
                raise StudentError(f"{name} can be one of {self.dimensions[name].sizes}; got {size!r}")
        return {**self.largest, **choice}

    def canonical(self, choice: Choice) -> dict[str, int]:
        """The choice that stands for all that give the same network: what is left out has its largest size."""
        full = self.check(choice)
        out = tuple(f"{name}." for name in self.removed(full))
        for name, dimension in self.dimensions.items():
            if dimension.kind == "width":
                owners = {place[0] for number in self.groups[name] for place in self.narrowing.groups[number].owners}
            else:
                owners = {f"{name.partition(':')[2]}.weight"}
            if dimension.kind != "depth" and all(owner.startswith(out) for owner in owners):
                full[name] = dimension.sizes[-1]
        return full

    def removed(self, choice: Choice) -> list[str]:
        """Names of the modules that a sub-network leaves out."""
        full = self.check(choice)
        return [name for key, blocks in self.blocks.items() for block in blocks.names[full[key] :] for name in block]

    def windows(self, choice: Choice) -> dict[str, int]:
        """The convolutions whose window is smaller in a sub-network, and its size."""
        full, out = self.check(choice), tuple(f"{name}." for name in self.removed(choice))
        return {
            name.partition(":")[2]: full[name]
            for name, dimension in self.dimensions.items()
            if dimension.kind == "kernel"
            and full[name] < dimension.sizes[-1]
            and not f"{name.partition(':')[2]}.".startswith(out)
        }

    def stay(self, choice: Choice) -> dict[int, range]:
        """The channels that stay in a sub-network, as :meth:`kdx.students.Narrowing.kept_indices` takes them."""
        full = self.check(choice)
        return {
            number: range(full[name])
            for name, numbers in self.groups.items()
            if full[name] < self.dimensions[name].sizes[-1]
            for number in numbers
        }

    def edits(self, choice: Choice) -> list[Edit]:
        """The changes that make a sub-network's structure of the model; none for the largest."""
        found: list[Edit] = []
        if stay := self.stay(choice):
            found.append(self.narrowing.edit(stay))
        if removed := self.removed(choice):
            found.append(Depth(removed=removed))
        if windows := self.windows(choice):
            found.append(Kernel(windows=windows))
        return found

    def structure(self, choice: Choice) -> nn.Module:
        """A new model of a sub-network's structure, without weights: its tensors are on the device ``meta``."""
        return self._changed(copy.deepcopy(self.model).to("meta"), choice)

    def cost(self, choice: Choice) -> SubCost:
        """Parameters and operations of a sub-network; each is counted once."""
        key = tuple(self.canonical(choice).values())
        if key not in self._costs:
            built = self._changed(copy.deepcopy(self.model), choice)
            flops = count_flops(built, self.inputs)
            self._costs[key] = SubCost(sum(parameter.numel() for parameter in built.parameters()), flops)
        return self._costs[key]

    def _changed(self, model: nn.Module, choice: Choice) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            for edit in self.edits(choice):
                edit.build(model)
        return model

    def _leave(self, keep: Iterable[str]) -> None:
        for pattern in keep:
            matched = [name for name in self.dimensions if fnmatchcase(name, pattern)]
            if not matched:
                raise ValueError(f"keep: there is no dimension {pattern!r}; there are {', '.join(self.dimensions)}")
            for name in matched:
                del self.dimensions[name]
                self.groups.pop(name, None)
                self.blocks.pop(name, None)
        for name in [name for name, dimension in self.dimensions.items() if len(dimension.sizes) == 1]:
            del self.dimensions[name]
            self.groups.pop(name, None)

    def _try_all(self) -> None:
        contract = Contract.of(self.model, self.inputs)
        alone = [{name: dimension.sizes[0]} for name, dimension in self.dimensions.items()]
        for choice in [*alone, self.smallest]:
            built = self._changed(copy.deepcopy(self.model), choice)
            try:
                contract.check(built)
            except StudentError as error:
                shown = ", ".join(f"{name}={size}" for name, size in choice.items())
                raise StudentError(
                    f"the sub-network with {shown} is not one of {type(self.model).__name__}: {error}. Leave the "
                    f"dimension as it is with keep={list(choice)[:1]}"
                ) from error


def _widths(narrowing: Narrowing, numbers: Sequence[int], widths: Sequence[float]) -> tuple[int, ...]:
    count = len(narrowing.groups[numbers[0]])
    multiple = math.lcm(*(narrowing.groups[number].multiple for number in numbers))
    sizes = {max(round(share * count / multiple), 1) * multiple for share in (*widths, 1.0)}
    return tuple(sorted(size for size in sizes if size <= count))


def _named(narrowing: Narrowing, groups: Iterable[list[int]]) -> Iterator[tuple[str, list[int]]]:
    """Every dimension of channels, named for the first layer that makes them."""
    taken: dict[str, int] = {}
    shapes = {name: tensor.dim() for name, tensor in narrowing.model.state_dict().items()}
    for numbers in groups:
        places = [place for number in numbers for place in narrowing.groups[number].owners]
        making = [name for name, dim in places if dim == 0 and shapes.get(name, 0) > 1]
        layer = [*making, *(name for name, _ in places)][0].rpartition(".")[0]
        taken[layer] = taken.get(layer, 0) + 1
        yield f"width:{layer}" + (f"#{taken[layer]}" if taken[layer] > 1 else ""), numbers
