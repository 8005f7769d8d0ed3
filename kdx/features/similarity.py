"""Similarity of the features of two networks: CKA and RSA."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kdx.errors import UnknownNameError, nearest

__all__ = ["SIMILARITIES", "MinibatchCKA", "linear_cka", "rsa", "similarity_matrix", "unbiased_cka"]


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
    size, apart from noise. It can be slightly negative for unrelated layers.

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
