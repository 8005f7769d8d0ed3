"""softmax_kl in CUDA C++: the launcher of csrc/cuda/softmax_kl.cu, and of its host emulation in the tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdx.ops._dtypes import CODES, accumulator, no_kernel
from kdx.ops._launch import address, check_divergence, check_logits, check_upstream, dense, on, stream, strided, zeroed
from kdx.ops._native import native


def unsupported(student: Tensor, teacher: Tensor) -> str | None:
    """Why this backend cannot run these tensors, or None."""
    return no_kernel(CODES, student)


def forward(
    student: Tensor,  # [O, C, I]
    teacher: Tensor,  # [O, C, I]
    kl_rows: Tensor | None,  # [O * I]
    labels: Tensor | None,  # [O * I]
    ce_rows: Tensor | None,  # [O * I]
    temperature: float,
    divergence: int,
    beta: float,
    kl_scale: float,
    ce_scale: float,
    reduce: bool,
    grad: bool,
    *,
    ce_losses: Tensor | None = None,  # [O * I]
) -> tuple[Tensor, Tensor | None]:
    """Row losses or their sum, and the gradient with respect to the student; README.md section "Backends"."""
    O, C, I = student.shape  # noqa: E741
    check_logits(student, teacher, kl_rows, labels, ce_rows, ce_losses)
    acc = accumulator(student)
    out = torch.empty_like(student) if grad else None
    if O * I == 0:
        return torch.zeros(() if reduce else (O, I), dtype=acc, device=student.device), out
    loss = torch.empty(() if reduce else (O, I), dtype=acc, device=student.device)
    module: Any = native("cuda")
    check_divergence(module, divergence, apart=ce_losses is not None)
    call = module.SoftmaxKl(
        *(strided(student), strided(teacher), strided(out), loss.data_ptr()),
        *(address(kl_rows), address(labels), address(ce_rows), (O, C, I)),
        *(temperature, beta, kl_scale, ce_scale, CODES[student.dtype], divergence, reduce),
    )
    if ce_losses is not None:
        call.ce_losses = ce_losses.data_ptr()
    with on(student.device):
        space = zeroed(student.device, call.workspace_bytes()) if reduce else None
        module.softmax_kl(call, address(space), 0 if space is None else space.numel(), stream(student.device))
    return loss, out


def scale_grad(grad: Tensor, upstream: Tensor) -> Tensor:
    """``grad * upstream`` in a new tensor, rounded once; ``upstream`` is read by the kernel, not by the host."""
    check_upstream(grad, upstream)
    grad, out = dense(grad)
    _scale(grad, upstream, out)
    return out


def scale_grad_(grad: Tensor, upstream: Tensor) -> None:
    """The same in ``grad`` itself, which has no gaps; the kernel leaves at once where ``upstream`` is 1."""
    check_upstream(grad, upstream)
    _scale(grad, upstream, grad)


def _scale(grad: Tensor, upstream: Tensor, out: Tensor) -> None:
    if grad.numel():
        arrays = grad.data_ptr(), upstream.data_ptr(), out.data_ptr()
        with on(grad.device):
            native("cuda").scale_grad(*arrays, grad.numel(), CODES[grad.dtype], stream(grad.device))
