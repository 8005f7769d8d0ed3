"""linear_kl in plain PyTorch: all logits at once, twice differentiable; the definition of right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdx.ops._dtypes import accumulator
from kdx.ops._linear_kl.call import COMMON, Gradients, Options, Rows, Side, Wanted
from kdx.ops._linear_kl.common import common_losses, common_rows
from kdx.ops._softmax_kl import reference as softmax_kl
from kdx.ops._topk_kl import reference as topk_kl
from kdx.ops._topk_kl.rows import sparse_rows

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
    """Row losses ``[N]``, which autograd can follow twice."""
    z_s, teacher = _shown(student, teacher, rows, options)
    if options.tail == COMMON and options.kl_scale != 0:
        return common_losses(z_s, *_common(z_s, student, teacher), rows, options)
    if teacher.ids is not None and options.kl_scale != 0:
        return topk_kl.losses(z_s, teacher.ids, teacher.hidden, rows, options)
    return softmax_kl.losses(*_call(z_s, teacher, rows, options)).squeeze(1)


def gradients(
    student: Side, teacher: Side, rows: Rows, options: Options, wanted: Wanted, upstream: Tensor | None = None
) -> Gradients:
    """The gradients of the sum of the rows' losses, each times its ``upstream``, that are wanted.

    They can be differentiated once more where gradients are enabled. That of the logits is softmax_kl's formula, which
    stays finite where autograd of the loss would not.
    """
    given, again = student[:3], torch.is_grad_enabled()
    with torch.enable_grad():
        if not again:
            hidden, weight, bias = (
                None if x is None else x.detach().requires_grad_(want) for x, want in zip(given, wanted, strict=True)
            )
            assert hidden is not None
            student = student._replace(hidden=hidden, weight=weight, bias=bias)
        z_s, t = _shown(student, teacher, rows, options)
        z = z_s if again else z_s.detach()
        if t.ids is None or options.kl_scale == 0:
            g = softmax_kl.gradient(*_call(z, t, rows, options)).squeeze(2)
        elif again:
            if options.tail == COMMON:
                each = common_losses(z, *_common(z, student, t), rows, options)
            else:
                each = topk_kl.losses(z, t.ids, t.hidden, rows, options)
            (g,) = torch.autograd.grad(each.sum(), z, create_graph=True)
        else:
            if options.tail == COMMON:
                _, made = common_rows(softmax_kl.forward, z, *_common(z, student, t), rows, options, grad=True)
            else:
                _, made = sparse_rows(softmax_kl.forward, z, t.ids, t.hidden, rows, options, grad=True)
            assert made is not None
            g = made
        if upstream is not None:
            g = g * upstream.unsqueeze(1)
        asked = [x for x, want in zip(student[:3], wanted, strict=True) if want and x is not None]
        found = list(torch.autograd.grad(z_s, asked, g, create_graph=again)) if asked else []
    for_hidden, for_weight, for_bias = (found.pop(0) if want else None for want in wanted)
    return for_hidden, for_weight, for_bias


def forward(
    student: Side, teacher: Side, rows: Rows, options: Options, wanted: Wanted, *, apart: bool
) -> tuple[Tensor, Gradients]:
    """Row losses ``[N]`` (``[2, N]`` where terms stay apart) and the gradients of their sum that are wanted."""
    with torch.no_grad():
        terms = rows.terms() if apart else [rows]
        each = [losses(student, teacher, term, options) for term in terms]
        return torch.stack(each) if apart else each[0], gradients(student, teacher, rows, options, wanted)


def _shown(student: Side, teacher: Side, rows: Rows, options: Options) -> tuple[Tensor, Side]:
    """The student's logits, and the teacher; a row that does not count is replaced before anything is computed, so
    that a NaN in it reaches nothing.
    """
    counts = rows.counted()[:, None]
    s = student._replace(hidden=torch.where(counts, student.hidden, 0.0))
    if options.kl_scale != 0:
        teacher = teacher._replace(hidden=torch.where(counts, teacher.hidden, 0.0))
    return logits(s, options.classes), teacher


def _common(z_s: Tensor, student: Side, teacher: Side) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The teacher's logits, and the classes that both have."""
    assert student.ids is not None
    assert teacher.ids is not None
    return logits(teacher, teacher.classes()).to(z_s.dtype), (student.ids, teacher.ids)


def _call(z_s: Tensor, teacher: Side, rows: Rows, options: Options) -> tuple[Any, ...]:
    """The arguments of softmax_kl's formulas, logits ``[N, V, 1]`` first."""
    # the student stands in for a teacher that nobody looks at
    z_t = z_s.detach() if options.kl_scale == 0 else logits(teacher, options.classes).to(z_s.dtype)
    numbers = (options.temperature, options.divergence, options.beta, options.kl_scale, options.ce_scale)
    return z_s.unsqueeze(2), z_t.unsqueeze(2), *rows, *numbers
