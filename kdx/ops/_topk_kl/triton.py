"""topk_kl in Triton: the launches of triton_kernels.py; the even tail in chunks, on Triton's kernels of softmax_kl."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from kdx.ops._linear_kl.call import EVEN, Options, Rows
from kdx.ops._softmax_kl import triton as softmax_kl
from kdx.ops._topk_kl import triton_kernels as kernels
from kdx.ops._topk_kl.chunks import in_chunks
from kdx.ops._topk_kl.sweeps import Gradient, Sums, in_two_sweeps
from kdx.ops._triton_launch import launch

_TILE = 4096  # classes of a tile at most
_LISTED = 1024  # listed classes that are read at a time, at most
_LOG2E = 1.4426950408889634


def unsupported(student: Tensor, *_: Tensor) -> str | None:
    """Why this backend cannot run these tensors, or None."""
    return softmax_kl.unsupported(student, student)


def forward(
    student: Tensor, ids: Tensor, known: Tensor, rows: Rows, options: Options, *, grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Row losses ``[N]`` and the gradient ``[N, V]`` of their sum in the dtype of the logits."""
    run = in_chunks if options.tail == EVEN else partial(in_two_sweeps, _sum_up, _differentiate)
    return run(softmax_kl.forward, student, ids, known, rows, options, grad=grad)


def _sum_up(call: Sums) -> tuple[Tensor, Tensor | None]:
    (N, C), K, device = call.student.shape, call.ids.shape[1], call.student.device
    few = torch.empty((N, K + 1), dtype=torch.float32, device=device)
    total_1 = torch.empty(N, dtype=torch.float32, device=device) if call.at_1 else None
    if N:
        block, warps = _tile(C)
        with softmax_kl.on_device(device):
            launch(
                *(kernels.sums_kernel, N, device),
                *(call.student, call.ids, call.counts, few, total_1, K, C, call.student.stride(0)),
                *(call.temperature, _LOG2E / call.temperature),
                BLOCK=block,
                K_BLOCK=min(_LISTED, _power(K)),
                WITHOUT=call.without,
                AT_1=call.at_1,
                num_warps=warps,
            )
    return few, total_1


def _differentiate(call: Gradient) -> Tensor:
    student, ids, counts, temperature, without, at_1 = call.sums
    N, C = student.shape
    out = torch.empty((N, C), dtype=softmax_kl.written(student), device=student.device)
    if N:
        block, warps = _tile(C)
        with softmax_kl.on_device(student.device):
            launch(
                *(kernels.gradient_kernel, N, student.device),
                *(student, ids, counts, out, call.add, call.rest, call.total, call.ce, call.total_1, call.labels),
                *(ids.shape[1], C, student.stride(0), _LOG2E / temperature),
                BLOCK=block,
                WITHOUT=without,
                CE=at_1,
                num_warps=warps,
            )
    return out.to(student.dtype)


def _power(n: int) -> int:
    """The least power of two that is not less."""
    return 1 << (n - 1).bit_length()


def _tile(classes: int) -> tuple[int, int]:
    """Classes of a tile, and warps."""
    block = min(_TILE, max(16, _power(classes)))
    return block, 8 if block > 2048 else 4
