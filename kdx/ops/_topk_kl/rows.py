"""Losses and gradients of some rows of logits against a few classes of the teacher's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kdx.ops._linear_kl.call import BUCKET, DROP, EVEN, RENORMALISE, SAMPLED, Options, Rows

__all__ = ["RowLosses", "bucketed", "dense_rows", "even_logits", "shares", "sparse_rows"]

RowLosses = Callable[..., tuple[Tensor, Tensor | None]]
"""``forward`` of a backend of softmax_kl."""


def dense_rows(
    row_losses: RowLosses, s: Tensor, t: Tensor, rows: Rows, options: Options, *, grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Row losses ``[R]`` of two sides' logits ``[R, C]`` and the gradient ``[R, C]`` of the first."""
    each, g = row_losses(
        *(s.unsqueeze(2), t.unsqueeze(2), rows.kl, rows.labels, rows.ce),
        *(options.temperature, options.divergence, options.beta, options.kl_scale, options.ce_scale),
        *(False, grad),
    )
    return each.squeeze(1), None if g is None else g.squeeze(2)


def sparse_rows(
    row_losses: RowLosses,
    z: Tensor,  # [R, V] in the accumulation dtype
    ids: Tensor,  # [R, K]
    known: Tensor,  # [R, K + 1]
    rows: Rows,
    options: Options,
    *,
    grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """Row losses ``[R]`` and their gradient ``[R, V]``; see README.md.

    Args:
        row_losses: ``forward`` of a backend of softmax_kl.
        z: the student's logits.
        ids: the teacher's classes, -1 where a row has none.
        known: their log-probabilities, that of the rest last.
        rows: of these rows.
        options: see :class:`Options`.
        grad: whether the gradient is wanted.
    """
    T = options.temperature
    if options.tail == EVEN:
        return dense_rows(row_losses, z, even_logits(ids, known, z.shape[1], T), rows, options, grad=grad)
    places = _places(ids)
    if options.tail == BUCKET:
        small, rest = bucketed(z, ids, T)
        each, g_small = dense_rows(row_losses, small, T * known, Rows(rows.kl, None, None), options, grad=grad)
        g = None
        if g_small is not None:
            g = torch.where(rest.isneginf(), 0.0, torch.exp((rest - small[:, -1:]) / T)).mul_(g_small[:, -1:])
            g.scatter_add_(1, places, torch.where(ids < 0, 0.0, g_small[:, :-1]))
    else:
        share, log_share = shares(known, ids, options.tail)
        log_sum = torch.logsumexp(z / T, 1, keepdim=True)
        log_q = z.gather(1, places) / T - log_sum
        coefficient = options.kl_scale * rows.kl
        each = coefficient * torch.where(share == 0, 0.0, share * (log_share - log_q)).sum(1)
        g = None
        if grad:
            g = torch.exp(z / T - log_sum).mul_(share.sum(1, keepdim=True))
            g.scatter_add_(1, places, -share)
            g.mul_(coefficient.unsqueeze(1) / T)
    if rows.ce is None:
        return each, g
    only = Rows(torch.zeros_like(rows.kl), rows.labels, rows.ce)
    more, g_more = dense_rows(row_losses, z, z, only, options, grad=grad)
    return each + more, g if g is None or g_more is None else g.add_(g_more)


def bucketed(z: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits ``[R, K + 1]`` of the classes and of all others together, and ``z`` with -inf for the classes.

    The last logit is ``T logsumexp(z / T)`` over the others, so that the softmax over the K + 1 at this temperature has
    their probability. -inf where a row has no class.
    """
    places = _places(ids)
    rest = z.scatter(1, places, -torch.inf)
    picked = torch.where(ids < 0, -torch.inf, z.gather(1, places))
    others = temperature * torch.logsumexp(rest / temperature, 1, keepdim=True)
    return torch.cat([picked, others], 1), rest


def even_logits(ids: Tensor, known: Tensor, classes: int, temperature: float) -> Tensor:
    """The teacher's logits ``[R, V]`` where the classes that are not listed share what is left of 1 evenly."""
    others = classes - (ids >= 0).sum(1, keepdim=True)
    each = torch.where(others > 0, known[:, -1:] - others.clamp(min=1).to(known.dtype).log(), -torch.inf)
    every = each.expand(-1, classes).clone()
    return every.scatter_(1, _places(ids), _first_for_none(known[:, :-1], ids)).mul_(temperature)


def shares(known: Tensor, ids: Tensor, tail: int) -> tuple[Tensor, Tensor]:
    """The weight ``[R, K]`` of each class in ``sum w (log p - log q)``, and its log p."""
    listed, log_p = ids >= 0, known[:, :-1]
    if tail == SAMPLED:
        return listed.to(known.dtype) / listed.sum(1, keepdim=True).clamp(min=1), log_p
    if tail == RENORMALISE:
        log_p = log_p - torch.where(listed, log_p, -torch.inf).logsumexp(1, keepdim=True)
    else:
        assert tail == DROP
    return torch.where(listed, log_p.exp(), 0.0), log_p


def _places(ids: Tensor) -> Tensor:
    """``ids``, with the row's first class where there is none: to write the same there twice changes nothing."""
    return torch.where(ids < 0, ids.amax(1, keepdim=True).clamp(min=0), ids)


def _first_for_none(values: Tensor, ids: Tensor) -> Tensor:
    """The value of the class that :func:`_places` takes, where a row has no class."""
    return torch.where(ids < 0, values.gather(1, ids.argmax(1, keepdim=True)), values)
