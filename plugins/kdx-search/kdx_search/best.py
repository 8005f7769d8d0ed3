"""The best sub-network within a budget, by a judgement that is cheap enough to be asked often."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from kdx.students import StudentError, parse_target
from kdx_search.space import Choice, Space, SubCost

__all__ = ["Found", "Judged", "best_choice", "limits_of"]

Limits = dict[str, float]

_MUTATED = 0.2
"""The probability that a dimension of a child is drawn anew."""
_PARENTS = 0.25
"""The share of those judged so far, the best, that have children."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A sub-network and how good it was judged.

    Args:
        choice: the sub-network.
        cost: its parameters and operations.
        score: more is better.
    """

    choice: dict[str, int]
    cost: SubCost
    score: float


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Args:
        best: the sub-network that was judged best.
        judged: all that were judged, in order, each once.
    """

    best: Judged
    judged: list[Judged] = field(repr=False)

    @property
    def front(self) -> list[Judged]:
        """Those that no other beats in operations and score, from the cheapest on."""
        found: list[Judged] = []
        for one in sorted(self.judged, key=lambda one: (one.cost.flops, -one.score)):
            if not found or one.score > found[-1].score:
                found.append(one)
        return found


def best_choice(
    space: Space,
    score: Callable[[Choice], float],
    *,
    params: str | float | None = None,
    flops: str | float | None = None,
    evaluations: int = 64,
    strategy: Literal["evolution", "random"] = "evolution",
    seed: int = 0,
) -> Found:
    """Looks for the best sub-network within a budget.

    The first one has all dimensions equally far up. Of the others half are drawn at random and cut down, dimension by
    dimension, until they are within the budget; the rest are children of the best quarter so far: every dimension is
    one parent's or the other's, some are drawn anew. Cai et al. (Once-for-All, 2020, https://arxiv.org/abs/1908.09791)
    search by evolution too; their predictor of accuracies is left out.

    Args:
        space: the sub-networks.
        score: how good one is, more is better; asked once for each network.
        params: the most parameters, as ``25%`` or ``0.25`` of the largest one's, or ``60k``.
        flops: the most operations of one sample, likewise.
        evaluations: how many are judged at most; fewer where the space has no more.
        strategy: ``"random"`` draws all of them, the control that a search has to beat.
        seed: of all that is drawn.

    Raises:
        ValueError: no evaluation, or a budget that cannot be read.
        StudentError: no sub-network is within the budget; the cheapest one is said.
    """
    if isinstance(evaluations, bool) or not isinstance(evaluations, int) or evaluations < 1:
        raise ValueError(f"evaluations must be a whole number, 1 or more; got {evaluations!r}")
    if strategy not in ("evolution", "random"):
        raise ValueError(f"strategy must be 'evolution' or 'random'; got {strategy!r}")
    limits = limits_of(space, params, flops)
    generator = random.Random(seed)
    judged: dict[tuple[int, ...], Judged] = {}
    for attempt in range(20 * evaluations):
        if len(judged) >= min(evaluations, len(space)):
            break
        if strategy == "random" or len(judged) < max(evaluations // 2, 2):
            choice = space.sample(generator)
        else:
            ranked = sorted(judged.values(), key=lambda one: -one.score)
            parents = ranked[: max(round(_PARENTS * len(ranked)), 2)]
            one, other = generator.choice(parents).choice, generator.choice(parents).choice
            choice = _child(space, one, other, generator)
        choice = space.canonical(_within(space, choice, limits, generator) if attempt else _within_all(space, limits))
        if (key := tuple(choice.values())) not in judged:
            judged[key] = Judged(choice, space.cost(choice), score(choice))
    return Found(max(judged.values(), key=lambda one: one.score), list(judged.values()))


def limits_of(space: Space, params: str | float | None, flops: str | float | None) -> Limits:
    """The most that a sub-network may cost, by the name of the cost.

    Args:
        space: the sub-networks.
        params: see :func:`best_choice`.
        flops: likewise.

    Raises:
        ValueError: a budget cannot be read.
        StudentError: no sub-network is within it; the cheapest one is said.
    """
    most, least = space.cost(space.largest), space.cost(space.smallest)
    found: Limits = {}
    for name, kind, value in (("parameters", "params", params), ("flops", "flops", flops)):
        if value is None:
            continue
        found[name] = parse_target(kind, value).budget(getattr(most, name))  # type: ignore[arg-type]
        if getattr(least, name) > found[name]:
            raise StudentError(
                f"no sub-network has at most {found[name]:,.0f} {name}: the smallest has {getattr(least, name):,}, "
                f"that is {getattr(least, name) / getattr(most, name):.1%} of the largest. Allow that much, or give "
                "smaller widths"
            )
    return found


def _fits(space: Space, choice: Choice, limits: Limits) -> bool:
    cost = space.cost(choice)
    return all(getattr(cost, name) <= most for name, most in limits.items())


def _within_all(space: Space, limits: Limits) -> dict[str, int]:
    """The largest sub-network where all dimensions are equally far up: the one that no search is needed for."""
    most = max(len(dimension.sizes) for dimension in space.dimensions.values())
    choice = space.smallest
    for step in range(1, most):
        share = step / (most - 1)
        larger = {name: one.sizes[round(share * (len(one.sizes) - 1))] for name, one in space.dimensions.items()}
        if not _fits(space, larger, limits):
            break
        choice = larger
    return choice


def _within(space: Space, choice: dict[str, int], limits: Limits, generator: random.Random) -> dict[str, int]:
    """A choice made smaller, one random dimension after the other, until it is within the limits."""
    while not _fits(space, choice, limits):
        above = [name for name, dimension in space.dimensions.items() if choice[name] > dimension.sizes[0]]
        name = generator.choice(above)
        sizes = space.dimensions[name].sizes
        choice = {**choice, name: sizes[sizes.index(choice[name]) - 1]}
    return choice


def _child(space: Space, one: Choice, other: Choice, generator: random.Random) -> dict[str, int]:
    found = {}
    for name, dimension in space.dimensions.items():
        found[name] = generator.choice((one, other))[name]
        if generator.random() < _MUTATED:
            found[name] = generator.choice(dimension.sizes)
    return found
