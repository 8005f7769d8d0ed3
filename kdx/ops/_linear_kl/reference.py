"""linear_kl in plain PyTorch: all logits at once, twice differentiable; the definition of right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdx.ops._dtypes import accumulator
from kdx.ops._linear_kl.call import Gradients, Options, Rows, Side, Wanted
from kdx.ops._softmax_kl import reference as rows_reference

__all__ = ["forward", "gradients", "logits", "losses", "unsupported"]


def unsupported(student: Tensor, teacher: Tensor) -> str | None:
    """None: the reference runs everywhere."""
    return None


def logits(side: Side, classes: int) -> Tensor:
    """``[N, classes]`` in the accumulation dtype, made of operands that are widened before their product."""
    if side.weight is None:
        return side.hidden[:, :classes].to(accumulator(side.hidden))
    acc = accumulator(side.hidden, side.weight)
    z = side.hidden.to(acc) @ side.weight[:classes].to(acc).T
    if side.bias is not None:
        z = z + side.bias[:classes].to(acc)
    z = side.scale * z
    return side.softcap * torch.tanh(z / side.softcap) if side.softcap else z


def losses(student: Side, teacher: Side, rows: Rows, options: Options) -> Tensor:
    """Row losses ``[N]``."""
    return rows_reference.losses(*_call(student, teacher, rows, options)).squeeze(1)


def gradients(
    student: Side, teacher: Side, rows: Rows, options: Options, wanted: Wanted, upstream: Tensor | None = None
) -> Gradients:
    """The gradients of the sum of the rows' losses, each times its ``upstream``, that are wanted.

    That of the logits is softmax_kl's formula, which stays finite where autograd of the loss would not, and can be
    differentiated once more.
    """
    given, differentiable = student[:3], torch.is_grad_enabled()
    with torch.enable_grad():
        if not differentiable:
            hidden, weight, bias = (
                None if x is None else x.detach().requires_grad_(want) for x, want in zip(given, wanted, strict=True)
            )
            assert hidden is not None
            student = student._replace(hidden=hidden, weight=weight, bias=bias)
        call = _call(student, teacher, rows, options)
        g = rows_reference.gradient(*call) if differentiable else rows_reference.gradient(call[0].detach(), *call[1:])
        if upstream is not None:
            g = g * upstream.reshape(-1, 1, 1)
        asked = [x for x, want in zip(student[:3], wanted, strict=True) if want and x is not None]
        found = list(torch.autograd.grad(call[0], asked, g, create_graph=differentiable)) if asked else []
    for_hidden, for_weight, for_bias = (found.pop(0) if want else None for want in wanted)
    return for_hidden, for_weight, for_bias


def forward(student: Side, teacher: Side, rows: Rows, options: Options, wanted: Wanted) -> tuple[Tensor, Gradients]:
    """Row losses ``[N]`` and the gradients of their sum that are wanted."""
    with torch.no_grad():
        return losses(student, teacher, rows, options), gradients(student, teacher, rows, options, wanted)


def _call(student: Side, teacher: Side, rows: Rows, options: Options) -> tuple[Any, ...]:
    """The arguments of softmax_kl's formulas, logits ``[N, V, 1]`` first."""
    counts = rows.kl != 0
    if rows.ce is not None:
        counts = counts | (rows.ce != 0)
    # A row that does not count is replaced before anything is computed, so that a NaN in it reaches nothing.
    s, t = (side._replace(hidden=torch.where(counts[:, None], side.hidden, 0.0)) for side in (student, teacher))
    z_s, z_t = logits(s, options.classes), logits(t, options.classes)
    _, temperature, divergence, beta, kl_scale, ce_scale, *_ = options
    numbers = (temperature, divergence, beta, kl_scale, ce_scale)
    return z_s.unsqueeze(2), z_t.to(z_s.dtype).unsqueeze(2), *rows, *numbers
