"""topk_kl some rows at a time, so that what is made of their logits stays in the cache and small."""

from __future__ import annotations

import torch
from torch import Tensor

from kdx.ops._dtypes import accumulator
from kdx.ops._linear_kl.call import Options, Rows
from kdx.ops._linear_kl.chunks import chunks_of
from kdx.ops._topk_kl.rows import RowLosses, sparse_rows

__all__ = ["CHUNK_BYTES", "in_chunks"]

CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 1 << 30}
"""Device -> bytes of the logits, of what stands in for them and of their gradient at a time."""


def in_chunks(
    row_losses: RowLosses, student: Tensor, ids: Tensor, known: Tensor, rows: Rows, options: Options, *, grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Row losses ``[N]`` and the gradient ``[N, V]`` of their sum in the dtype of the logits.

    Rows that do not count are never read; their gradient is 0.
    """
    acc = accumulator(student)
    found = torch.zeros(student.shape[0], dtype=acc, device=student.device)
    out = torch.zeros_like(student, memory_format=torch.contiguous_format) if grad else None
    for at in chunks_of(rows, student.shape[1], acc, CHUNK_BYTES):
        few = rows.at(at)
        found[at], g = sparse_rows(row_losses, student[at].to(acc), ids[at], known[at], few, options, grad=grad)
        if out is not None and g is not None:
            out[at] = g.to(out.dtype)
    return found, out
