"""topk_kl in plain PyTorch: all rows at once, twice differentiable; the definition of right."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdx.ops._dtypes import accumulator
from kdx.ops._linear_kl.call import BUCKET, EVEN, Options, Rows
from kdx.ops._softmax_kl import reference as softmax_kl
from kdx.ops._topk_kl.rows import bucketed, even_logits, shares, sparse_rows

__all__ = ["forward", "losses", "unsupported"]


def unsupported(student: Tensor, *_: Tensor) -> str | None:
    """None: the reference runs everywhere."""
    return None


def losses(student: Tensor, ids: Tensor, known: Tensor, rows: Rows, options: Options) -> Tensor:
    """Row losses ``[N]``, which autograd can follow twice."""
    counts = rows.counted()
    # A row that does not count is replaced before anything is computed, so that a NaN in it reaches nothing.
    z = torch.where(counts[:, None], student.to(accumulator(student)), 0.0)
    numbers = (options.temperature, options.divergence, options.beta, options.kl_scale, options.ce_scale)
    if options.tail in (BUCKET, EVEN):
        if options.tail == BUCKET:
            s, _ = bucketed(z, ids, options.temperature)
            t = options.temperature * known
        else:
            s, t = z, even_logits(ids, known, z.shape[1], options.temperature)
        each = softmax_kl.losses(s.unsqueeze(2), t.unsqueeze(2), rows.kl, None, None, *numbers).squeeze(1)
    else:
        share, log_share = shares(known, ids, options.tail)
        log_q = F.log_softmax(z / options.temperature, 1).gather(1, ids.clamp(min=0))
        terms = torch.where(share == 0, 0.0, share * (log_share - log_q))
        each = options.kl_scale * rows.kl * terms.sum(1)
    if rows.ce is None or rows.labels is None:
        return each
    ce = torch.where(rows.ce == 0, 0.0, rows.ce)
    y = torch.where(rows.ce == 0, 0, rows.labels).clamp(min=0)
    return each - options.ce_scale * ce * F.log_softmax(z, 1).gather(1, y[:, None]).squeeze(1)


def forward(
    student: Tensor, ids: Tensor, known: Tensor, rows: Rows, options: Options, *, grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Row losses ``[N]`` and the gradient ``[N, V]`` of their sum in the dtype of the logits."""
    counts = rows.counted()
    z = torch.where(counts[:, None], student.to(accumulator(student)), 0.0)
    found, g = sparse_rows(softmax_kl.forward, z, ids, known, rows, options, grad=grad)
    return found, None if g is None else torch.where(counts[:, None], g, 0.0).to(student.dtype)
