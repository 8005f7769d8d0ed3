"""Which student layer learns from which teacher layer: strategies, and the similarities they go by."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from kdx.errors import UnknownNameError, nearest

__all__ = [
    "SIMILARITIES",
    "STRATEGIES",
    "MinibatchCKA",
    "Pairs",
    "Strategy",
    "linear_cka",
    "pair_by_depth",
    "pair_by_similarity",
    "pair_layers",
    "rsa",
    "similarity_matrix",
    "unbiased_cka",
]

Strategy = Literal["explicit", "uniform", "relative", "cka", "cka-unbiased", "rsa", "attention", "reverse", "random"]
"""How student layers find teacher layers; both lists run from shallow to deep.

- ``explicit``: the first with the first and so on; as many of each.
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
        strategy: any but those of :data:`SIMILARITIES`.
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


def similarity_matrix(student: Sequence[Tensor], teacher: Sequence[Tensor], *, similarity: str = "cka") -> Tensor:
    """The similarity of every student layer to every teacher layer on one batch, ``[students, teachers]``.

    Raises:
        UnknownNameError: no such similarity.
        ValueError: no layers.
    """
    if similarity not in SIMILARITIES:
        raise UnknownNameError(f"there is no similarity {similarity!r}; {nearest(similarity, SIMILARITIES)}")
    if not student or not teacher:
        raise ValueError(
            f"there are {len(student)} student and {len(teacher)} teacher layers; give at least one of each"
        )
    compare = SIMILARITIES[similarity]
    return torch.stack([torch.stack([compare(s, t) for t in teacher]) for s in student])


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """Linear centred kernel alignment ``||Y'X||^2 / (||X'X|| ||Y'Y||)`` of column-centred features.

    1 for features that agree up to rotation and scale, 0 for a constant feature; biased upwards when there are fewer
    samples than channels.

    Args:
        x: ``[N, ...]``, flattened to ``[N, D]``.
        y: ``[N, ...]`` of the same samples.

    Paper: Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019,
    https://arxiv.org/abs/1905.00414.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 5.0]])
        >>> round(linear_cka(x, 3 * x.flip(1)).item(), 4)
        1.0
    """
    a, b = _centred(_gram(x)), _centred(_gram(y))
    return _ratio((a * b).sum(), (a * a).sum() * (b * b).sum())


def unbiased_cka(x: Tensor, y: Tensor) -> Tensor:
    """Linear CKA from the unbiased estimator of HSIC; needs at least 4 samples. See :class:`MinibatchCKA`."""
    cka = MinibatchCKA(1, 1)
    cka.update([x], [y])
    return cka.compute()[0, 0]


def rsa(x: Tensor, y: Tensor) -> Tensor:
    """Representational similarity analysis: Pearson correlation of the two sets of pairwise distances.

    0 where one side has no spread (two samples, or all alike).

    Paper: Kriegeskorte, Mur, Bandettini, Representational similarity analysis, Frontiers in Systems Neuroscience 2008,
    https://doi.org/10.3389/neuro.06.004.2008.
    """
    distances = []
    for feature in (x, y):
        gram = _gram(feature)
        square = gram.diagonal()
        upper = torch.triu_indices(len(gram), len(gram), 1, device=gram.device)
        pairs = (square[:, None] + square[None, :] - 2 * gram)[upper[0], upper[1]]
        distance = pairs.clamp(min=0).sqrt()
        distances.append(distance - distance.mean() if len(distance) else distance)
    a, b = distances
    return _ratio((a * b).sum(), (a * a).sum() * (b * b).sum())


SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cka": linear_cka,
    "cka-unbiased": unbiased_cka,
    "rsa": rsa,
}
"""Similarities of two features of the same samples by name: 1 for alike, about 0 for unrelated."""


class MinibatchCKA:
    """Linear CKA between all student and all teacher layers, accumulated over batches of at least 4 samples.

    The unbiased HSIC of every batch is averaged and the ratio taken last, so the value does not depend on the batch
    size but for noise. It can be slightly negative for unrelated layers.

    Args:
        students: number of student layers.
        teachers: number of teacher layers.

    Paper: Nguyen, Raghu, Kornblith, Do Wide and Deep Networks Learn the Same Things?, ICLR 2021,
    https://arxiv.org/abs/2010.15327; the estimator is that of Song et al., JMLR 2012.
    """

    def __init__(self, students: int, teachers: int) -> None:
        self.cross = torch.zeros(students, teachers, dtype=torch.float64)
        self.student = torch.zeros(students, dtype=torch.float64)
        self.teacher = torch.zeros(teachers, dtype=torch.float64)

    def update(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
        """Adds one batch.

        Args:
            student: one feature ``[N, ...]`` per student layer, N >= 4.
            teacher: the same of the teacher.

        Raises:
            ValueError: fewer than 4 samples, for which the estimator does not exist.
        """
        a = torch.stack([_hollow(feature) for feature in student])  # [S, N, N]
        b = torch.stack([_hollow(feature) for feature in teacher])  # [T, N, N]
        if (n := a.shape[1]) < 4:
            raise ValueError(f"CKA without bias needs batches of at least 4 samples, got {n}; use larger batches")
        self.cross += _hsic(a, b, n)
        self.student += torch.stack([_hsic(each[None], each[None], n)[0, 0] for each in a])
        self.teacher += torch.stack([_hsic(each[None], each[None], n)[0, 0] for each in b])

    def compute(self) -> Tensor:
        """``[students, teachers]`` float32."""
        return _ratio(self.cross, (self.student[:, None] * self.teacher[None, :]).clamp(min=0)).float()


def _spaced(count: int) -> list[float]:
    return [1.0] if count == 1 else [i / (count - 1) for i in range(count)]


def _gram(feature: Tensor) -> Tensor:
    with torch.autocast(feature.device.type, enabled=False):
        flat = feature.to(torch.promote_types(feature.dtype, torch.float32)).flatten(1)
        # moving all samples together changes no centred quantity and keeps a common offset out of the rounding
        flat = flat - flat.mean(0)
        return flat @ flat.T


def _centred(gram: Tensor) -> Tensor:
    return gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()


def _hollow(feature: Tensor) -> Tensor:
    gram = _gram(feature.detach()).double().cpu()
    return gram.fill_diagonal_(0)


def _hsic(a: Tensor, b: Tensor, n: int) -> Tensor:
    """Unbiased HSIC of hollow Gram matrices ``[S, N, N]`` and ``[T, N, N]`` -> ``[S, T]``."""
    trace = a.flatten(1) @ b.flatten(1).T
    sums = a.sum((1, 2))[:, None] * b.sum((1, 2))[None, :] / ((n - 1) * (n - 2))
    rows = a.sum(2) @ b.sum(2).T
    return (trace + sums - 2 * rows / (n - 2)) / (n * (n - 3))


def _ratio(numerator: Tensor, square_of_denominator: Tensor) -> Tensor:
    """``a / sqrt(b)``, and 0 where b is 0."""
    empty = square_of_denominator <= 0
    return torch.where(empty, 0.0, numerator / torch.where(empty, 1.0, square_of_denominator).sqrt())
