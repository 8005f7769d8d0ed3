"""The tensors of topk_kl as its kernels read them."""

from __future__ import annotations

from torch import Tensor

from kdx.ops._dtypes import accumulator
from kdx.ops._linear_kl.call import Rows

__all__ = ["neighbours"]


def neighbours(student: Tensor, ids: Tensor, known: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor, Rows]:
    """The arguments of a call with the classes of a row next to each other; copies only where they are not.

    Raises:
        ValueError: a tensor has not one row for each of the student's, or another dtype than kernels read.
    """
    N, acc = student.shape[0], accumulator(student)
    for name, x, dtype, shape in (
        ("ids", ids, None, (N, ids.shape[-1])),
        ("known", known, acc, (N, ids.shape[-1] + 1)),
        ("kl_rows", rows.kl, acc, (N,)),
        ("labels", rows.labels, None, (N,)),
        ("ce_rows", rows.ce, acc, (N,)),
    ):
        if x is not None and (tuple(x.shape) != shape or (dtype or x.dtype) != x.dtype or x.device != student.device):
            raise ValueError(
                f"{name}: expected {list(shape)} {dtype or 'int64'} on {student.device}, got {list(x.shape)} {x.dtype} "
                f"on {x.device}"
            )
    if student.shape[1] > 1 and student.stride(1) != 1:
        student = student.contiguous()
    dense = Rows(*(None if x is None else x.contiguous() for x in rows))  # type: ignore[arg-type]  # kl is no None
    return student, ids.contiguous(), known.contiguous(), dense
