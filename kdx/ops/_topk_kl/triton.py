"""topk_kl in chunks, on Triton's kernels of softmax_kl."""

from __future__ import annotations

from torch import Tensor

from kdx.ops._linear_kl.call import Options, Rows
from kdx.ops._softmax_kl import triton as softmax_kl
from kdx.ops._topk_kl.chunks import in_chunks


def unsupported(student: Tensor, *_: Tensor) -> str | None:
    """Why this backend cannot run these tensors, or None."""
    return softmax_kl.unsupported(student, student)


def forward(
    student: Tensor, ids: Tensor, known: Tensor, rows: Rows, options: Options, *, grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Row losses ``[N]`` and the gradient ``[N, V]`` of their sum in the dtype of the logits."""
    return in_chunks(softmax_kl.forward, student, ids, known, rows, options, grad=grad)
