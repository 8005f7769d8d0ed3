"""Pairs of student and teacher layers, chosen by position or by similarity."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor

from kdx.errors import UnknownNameError, nearest
from kdx.features.similarity import SIMILARITIES, similarity_matrix

__all__ = ["STRATEGIES", "Pairs", "Strategy", "pair_by_depth", "pair_by_similarity", "pair_layers"]

Strategy = Literal["explicit", "uniform", "relative", "cka", "cka-unbiased", "rsa", "attention", "reverse", "random"]
"""How student layers are paired with teacher layers; both lists run from shallow to deep.

- ``explicit``: the first with the first and so on; the same number of each.
- ``uniform``: evenly spaced teacher layers, ending at the deepest one.
- ``relative``: the teacher layer at the same relative depth, first with first and last with last.
- ``cka``, ``cka-unbiased``, ``rsa``: the most similar teacher layer on one batch, by that one of :data:`SIMILARITIES`.
- ``attention``: every pair, weighted by attention that is learned (SemCKD 2021); ``semckd`` does this.
- ``reverse``: ``relative`` upside down, a control that should do worse.
- ``random``: a teacher layer drawn once by ``seed`` for each student layer, the other control.
"""

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
Pairs = list[tuple[int, int]]
"""Pairs of (index of the student layer, index of the teacher layer)."""


def pair_layers(strategy: Strategy, student: Sequence[Tensor], teacher: Sequence[Tensor], *, seed: int = 0) -> Pairs:
    """Pairs every student layer with a teacher layer.

    Args:
        strategy: see :data:`Strategy`.
        student: one feature ``[N, ...]`` per layer, from shallow to deep.
        teacher: the same of the teacher, for the same batch.
        seed: for ``random``.

    Raises:
        UnknownNameError: no such strategy.
        ValueError: no layers, or different numbers of layers for ``explicit``.
    """
    if strategy in SIMILARITIES:
        return pair_by_similarity(similarity_matrix(student, teacher, similarity=strategy))
    return pair_by_depth(strategy, len(student), len(teacher), seed=seed)


def pair_by_depth(
    strategy: Strategy,
    students: int,
    teachers: int,
    *,
    seed: int = 0,
    positions: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Pairs:
    """Pairs layers by their place alone.

    Args:
        strategy: any except those of :data:`SIMILARITIES`.
        students: number of student layers.
        teachers: number of teacher layers.
        seed: for ``random``.
        positions: depths of the student's and the teacher's layers in [0, 1] for ``relative`` and ``reverse``; evenly
            spaced by default.

    Example:
        >>> pair_by_depth("uniform", 2, 4)
        [(0, 1), (1, 3)]
        >>> pair_by_depth("relative", 2, 4)
        [(0, 0), (1, 3)]
        >>> pair_by_depth("reverse", 2, 4)
        [(0, 3), (1, 0)]
    """
    if strategy not in STRATEGIES:
        raise UnknownNameError(f"there is no strategy {strategy!r} to pair layers; {nearest(strategy, STRATEGIES)}")
    if students < 1 or teachers < 1:
        raise ValueError(
            f"there are {students} student and {teachers} teacher layers to pair; tap at least one of each"
        )
    if strategy in SIMILARITIES:
        raise ValueError(f"strategy {strategy!r} needs features, not only places; call pair_layers")
    if strategy == "explicit":
        if students != teachers:
            raise ValueError(
                f"strategy 'explicit' pairs layers one by one, but {students} student and {teachers} teacher layers "
                "are tapped; tap as many of each, or pair them by 'uniform', 'relative' or 'cka'"
            )
        return [(i, i) for i in range(students)]
    if strategy == "attention":
        return [(i, j) for i in range(students) for j in range(teachers)]
    if strategy == "random":
        draw = random.Random(seed)
        return [(i, draw.randrange(teachers)) for i in range(students)]
    if strategy == "uniform":
        # rounded half up in integers: round() takes ties to the even side
        return [(i, max((2 * (i + 1) * teachers + students) // (2 * students) - 1, 0)) for i in range(students)]
    student_depths, teacher_depths = positions or (_spaced(students), _spaced(teachers))
    pairs = []
    for i, depth in enumerate(student_depths):
        wanted = 1 - depth if strategy == "reverse" else depth
        # of two equally near layers the deeper one
        pairs.append((i, min(range(teachers), key=lambda j: (round(abs(teacher_depths[j] - wanted), 9), -j))))
    return pairs


def pair_by_similarity(similarity: Tensor) -> Pairs:
    """Pairs every student layer with the most similar teacher layer; of equals the deeper.

    Args:
        similarity: ``[students, teachers]``.
    """
    teachers = similarity.shape[1]
    return [(i, max(range(teachers), key=lambda j: (row[j], j))) for i, row in enumerate(similarity.tolist())]


def _spaced(count: int) -> list[float]:
    return [1.0] if count == 1 else [i / (count - 1) for i in range(count)]
