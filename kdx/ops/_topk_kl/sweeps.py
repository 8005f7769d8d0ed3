"""topk_kl in two sweeps over the student's logits, for the sums and for the gradient; between them K + 1 numbers.

A backend brings the sweeps; what is known by a few classes is compared by its softmax_kl.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kdx.ops._linear_kl.call import BUCKET, Options, Rows
from kdx.ops._topk_kl.launch import neighbours
from kdx.ops._topk_kl.rows import RowLosses, dense_rows, shares

__all__ = ["Gradient", "Sums", "in_two_sweeps"]


class Sums(NamedTuple):
    """The arguments of the first sweep.

    Args:
        student: logits ``[N, V]``, the classes of a row next to each other.
        ids: the listed classes ``[N, K]`` in ascending order, -1 where a row has none.
        counts: bool ``[N]``; the other rows are never read.
        temperature: T.
        without: whether the listed classes are left out of the sum.
        at_1: whether the sum at temperature 1, of all classes, is wanted too.
    """

    student: Tensor
    ids: Tensor
    counts: Tensor
    temperature: float
    without: bool
    at_1: bool


class Gradient(NamedTuple):
    """The arguments of the second: ``rest exp((z - total) / T) + ce (exp(z - total_1) - [label])`` for each class.

    A listed class has ``add`` instead of the first term, or beside it where it is not left out.

    Args:
        sums: those of the first.
        add: ``[N, K]``, in the order of the ids.
        rest: ``[N]``.
        total: ``[N]``, T times the logsumexp of z / T.
        ce: ``[N]``, or None: no cross-entropy.
        total_1: ``[N]``, given with it, as the labels are.
        labels: int64 ``[N]``.
    """

    sums: Sums
    add: Tensor
    rest: Tensor
    total: Tensor
    ce: Tensor | None
    total_1: Tensor | None
    labels: Tensor | None


def in_two_sweeps(
    sum_up: Callable[[Sums], tuple[Tensor, Tensor | None]],
    differentiate: Callable[[Gradient], Tensor],
    row_losses: RowLosses,
    student: Tensor,
    ids: Tensor,
    known: Tensor,
    rows: Rows,
    options: Options,
    *,
    grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """Row losses ``[N]`` and the gradient ``[N, V]`` of their sum in the dtype of the logits.

    Args:
        sum_up: the first sweep: logits ``[N, K + 1]`` of the listed classes and last that of the sum, and the logsumexp
            ``[N]`` at temperature 1 where it is wanted; 0 in rows that do not count.
        differentiate: the second.
        row_losses: ``forward`` of the backend's softmax_kl.
        student: logits ``[N, V]``.
        ids: listed classes ``[N, K]``.
        known: their log-probabilities, that of the rest last.
        rows: see :class:`Rows`.
        options: of any tail but the even one.
        grad: whether the gradient is wanted.
    """
    student, ids, known, rows = neighbours(student, ids, known, rows)
    ids, order = ids.sort(1)
    log_p = known[:, :-1].gather(1, order)
    bucket, with_ce = options.tail == BUCKET, rows.ce is not None
    sums = Sums(student, ids, rows.counted(), options.temperature, bucket, with_ce)
    few, total_1 = sum_up(sums)
    if bucket:
        t = options.temperature * torch.cat([log_p, known[:, -1:]], 1)
        each, g = dense_rows(row_losses, few, t, Rows(rows.kl, None, None), options, grad=grad)
        add, rest = (None, None) if g is None else (g[:, :-1], g[:, -1])
    else:
        share, log_share = shares(torch.cat([log_p, known[:, -1:]], 1), ids, options.tail)
        log_q = (few[:, :-1] - few[:, -1:]) / options.temperature
        coefficient = options.kl_scale * rows.kl
        each = torch.where(share == 0, 0.0, share * (log_share - log_q)).sum(1)
        each = torch.where(coefficient == 0, 0.0, coefficient * each)
        per_class = coefficient / options.temperature
        add, rest = -share * per_class.unsqueeze(1), share.sum(1) * per_class
    ce = None
    if rows.ce is not None and rows.labels is not None:
        assert total_1 is not None
        ce = options.ce_scale * rows.ce
        known_label = (rows.labels >= 0) & (rows.labels < student.shape[1])
        ce = torch.where((ce != 0) & ~known_label, torch.nan, ce)  # never an address before this
        y = torch.where(known_label, rows.labels, 0)
        of_label = student.gather(1, y.unsqueeze(1)).squeeze(1).to(each.dtype)
        each = torch.where(ce == 0, each, each + ce * (total_1 - of_label))
    if not grad:
        return each, None
    assert add is not None
    assert rest is not None
    return each, differentiate(
        Gradient(sums, add.contiguous(), rest.contiguous(), few[:, -1].contiguous(), ce, total_1, rows.labels)
    )
