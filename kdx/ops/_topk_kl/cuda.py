"""topk_kl in CUDA C++: the launchers of csrc/cuda/topk_kl.cu, and of its host emulation in the tests.

The even tail runs in chunks, on CUDA's kernels of softmax_kl.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from kdx.ops._dtypes import CODES, accumulator
from kdx.ops._launch import address, on, stream
from kdx.ops._linear_kl.call import EVEN, Options, Rows
from kdx.ops._native import native
from kdx.ops._softmax_kl import cuda as softmax_kl
from kdx.ops._topk_kl.chunks import in_chunks
from kdx.ops._topk_kl.sweeps import Gradient, Sums, in_two_sweeps


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
    N, K, acc, device = call.student.shape[0], call.ids.shape[1], accumulator(call.student), call.student.device
    few = torch.empty((N, K + 1), dtype=acc, device=device)
    total_1 = torch.empty(N, dtype=acc, device=device) if call.at_1 else None
    launch = native("cuda", "topk_kl_sums")
    if N:
        with on(device):
            launch(_described(call, few, total_1), stream(device))
    return few, total_1


def _differentiate(call: Gradient) -> Tensor:
    student = call.sums.student
    out = torch.empty(student.shape, dtype=student.dtype, device=student.device)
    if student.shape[0]:
        with on(student.device):
            native("cuda", "topk_kl_gradient")(
                *(_described(call.sums, None, None), out.data_ptr(), call.add.data_ptr(), call.rest.data_ptr()),
                *(call.total.data_ptr(), address(call.ce), address(call.total_1), address(call.labels)),
                stream(student.device),
            )
    return out


def _described(call: Sums, few: Tensor | None, total_1: Tensor | None) -> Any:
    (N, C), K = call.student.shape, call.ids.shape[1]
    return native("cuda", "TopkSums")(
        *(call.student.data_ptr(), call.student.stride(0), call.ids.data_ptr(), call.counts.data_ptr()),
        *(address(few), address(total_1), (N, K, C), call.temperature, CODES[call.student.dtype], call.without),
    )
