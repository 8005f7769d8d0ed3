"""Numbers to log beside a loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kdx.ops._linear_kl.call import Options, Rows

__all__ = ["Stats", "stats_of"]


class Stats(NamedTuple):
    """Numbers to log beside a loss of `linear_kl`: tensors without dimensions that nothing can be differentiated by.

    Args:
        divergence: mean over the rows that count, weighted as they are; without T^2 and without ``alpha``. None where
            the loss has no divergence.
        cross_entropy: likewise; None where the loss has none.
        rows: how many rows the divergence is taken over.
        labelled: how many rows the cross-entropy is taken over.

    Example:
        >>> import torch, kdx
        >>> hidden, head, labels = torch.eye(2, 3), torch.arange(12.0).reshape(4, 3), torch.tensor([1, -100])
        >>> _, stats = kdx.ops.linear_kl(hidden, head, 2 * hidden, head, labels=labels, alpha=0.5, return_stats=True)
        >>> int(stats.rows), round(stats.cross_entropy.item(), 4)
        (1, 6.0511)
    """

    divergence: Tensor | None
    cross_entropy: Tensor | None
    rows: Tensor
    labelled: Tensor


def stats_of(terms: Tensor, rows: Rows, options: Options) -> Stats:
    """The numbers of a call, from the sums ``[2]`` of its two terms, or the one sum where it has no cross-entropy."""
    kl, ce = (terms.detach(), None) if rows.ce is None else terms.detach().unbind()
    counts = rows.kl != 0, torch.zeros_like(rows.kl) if rows.ce is None else rows.ce != 0

    def mean(total: Tensor | None, coefficients: Tensor | None, scale: float) -> Tensor | None:
        if total is None or coefficients is None or scale == 0:
            return None
        whole = coefficients.sum(dtype=torch.float64)
        return torch.where(whole == 0, 0.0, total / (scale * whole)).to(total.dtype)

    of_kl, of_ce = mean(kl, rows.kl, options.kl_scale), mean(ce, rows.ce, options.ce_scale)
    return Stats(of_kl, of_ce, *(each.sum(dtype=torch.int64) for each in counts))
