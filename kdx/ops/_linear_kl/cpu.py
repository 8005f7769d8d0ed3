"""linear_kl in chunks, on the CPU's kernels of softmax_kl and topk_kl."""

from __future__ import annotations

from torch import Tensor

from kdx.ops._linear_kl.call import Gradients, Options, Rows, Side, Wanted
from kdx.ops._linear_kl.chunks import in_chunks
from kdx.ops._softmax_kl import cpu as softmax_kl
from kdx.ops._topk_kl import cpu as topk_kl


def unsupported(student: Tensor, teacher: Tensor) -> str | None:
    """Why this backend cannot run these tensors, or None."""
    return softmax_kl.unsupported(student, teacher)


def forward(
    student: Side, teacher: Side, rows: Rows, options: Options, wanted: Wanted, *, apart: bool
) -> tuple[Tensor, Gradients]:
    """Row losses ``[N]`` (``[2, N]`` where terms stay apart) and the gradients of their sum that are wanted."""
    return in_chunks(softmax_kl.forward, topk_kl.forward, student, teacher, rows, options, wanted, apart=apart)
