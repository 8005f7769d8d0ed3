"""softmax_kl in C++ on a CPU: the launcher of csrc/cpu/softmax_kl.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from kdx.ops._dtypes import CODES, accumulator, no_kernel
from kdx.ops._launch import address, check_divergence, check_logits, check_upstream, dense, strided
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
    loss = torch.empty(() if reduce else (O, I), dtype=accumulator(student))
    out = torch.empty_like(student) if grad else None
    module = native("cpu")
    check_divergence(module, divergence, apart=ce_losses is not None)
    apart = () if ce_losses is None else (ce_losses.data_ptr(),)
    module.softmax_kl(
        *(*strided(student), *strided(teacher), *strided(out), loss.data_ptr()),
        *(address(kl_rows), address(labels), address(ce_rows), O, C, I),
        *(temperature, beta, kl_scale, ce_scale, CODES[student.dtype], divergence, reduce, torch.get_num_threads()),
        *apart,
    )
    return loss, out


def scale_grad(grad: Tensor, upstream: Tensor) -> Tensor:
    """``grad * upstream`` in a new tensor, rounded once."""
    check_upstream(grad, upstream)
    grad, out = dense(grad)
    _scale(grad, upstream, out)
    return out


def scale_grad_(grad: Tensor, upstream: Tensor) -> None:
    """The same in ``grad`` itself, which has no gaps."""
    check_upstream(grad, upstream)
    _scale(grad, upstream, grad)


def _scale(grad: Tensor, upstream: Tensor, out: Tensor) -> None:
    native("cpu").scale_grad(
        grad.data_ptr(), upstream.data_ptr(), out.data_ptr(), grad.numel(), CODES[grad.dtype], torch.get_num_threads()
    )
