"""How far a cheap judgement of sub-networks orders them as the full one does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Agreement", "agreement"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Kendall's rank correlation of two judgements of the same sub-networks.

    Args:
        tau: tau-b, from -1 (the reverse order) to 1 (the same); ties are allowed for.
        p_value: how probable a tau as far from 0 is where the two have nothing to do with each other.
        low: lower end of the 95 % bootstrap interval over sub-networks.
        high: upper end.
        count: of the sub-networks.
    """

    tau: float
    p_value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return (
            f"tau {self.tau:.2f} [{self.low:.2f}, {self.high:.2f}], p = {self.p_value:.2g}, {self.count} sub-networks"
        )


def agreement(proxy: Sequence[float], truth: Sequence[float], *, resamples: int = 2000, seed: int = 0) -> Agreement:
    """Kendall's tau between a cheap judgement and the one that it stands for, with a p-value and an interval.

    Args:
        proxy: of every sub-network, as its accuracy on shared weights; more is better.
        truth: of the same sub-networks, as their accuracy trained alone; more is better.
        resamples: of the bootstrap, which draws sub-networks with replacement.
        seed: of the bootstrap.

    Raises:
        ValueError: not equally many, fewer than three, or a judgement is the same for all or no number.

    Example:
        >>> agreement([0.5, 0.6, 0.7, 0.65], [0.7, 0.8, 0.9, 0.85]).tau
        1.0
    """
    from scipy.stats import kendalltau  # type: ignore[import-untyped]

    first, second = np.asarray(proxy, dtype=float), np.asarray(truth, dtype=float)
    if first.shape != second.shape or first.ndim != 1 or len(first) < 3:
        raise ValueError(
            f"proxy and truth must judge the same three sub-networks or more; got {first.size} and {second.size} values"
        )
    if not np.isfinite([*first, *second]).all() or not np.ptp(first) or not np.ptp(second):
        raise ValueError("proxy and truth must be finite, and not the same for all sub-networks: there is no order")
    found = kendalltau(first, second)
    generator = np.random.default_rng(seed)
    pairs = [np.sign(values[:, None] - values[None]) for values in (first, second)]  # [n, n]
    taus = [_tau(pairs, generator.integers(len(first), size=len(first))) for _ in range(resamples)]
    low, high = np.nanquantile(taus, [0.025, 0.975])
    return Agreement(float(found.statistic), float(found.pvalue), float(low), float(high), len(first))


def _tau(pairs: Sequence[NDArray[np.float64]], rows: NDArray[np.int64]) -> float:
    """Tau-b of some sub-networks, which may be there several times; NaN where only one is, which has no order."""
    one, other = (signs[np.ix_(rows, rows)] for signs in pairs)
    ordered = float(np.sqrt(np.square(one).sum() * np.square(other).sum()))
    return float((one * other).sum()) / ordered if ordered else float("nan")
