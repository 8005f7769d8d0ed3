"""The op as torch sees it: ``kdx::topk_kl``, and the autograd function around it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdx.ops import _dispatch
from kdx.ops._dtypes import accumulator
from kdx.ops._library import define
from kdx.ops._linear_kl.autograd import scaled
from kdx.ops._linear_kl.call import SAMPLED, Options, Rows
from kdx.ops._topk_kl import reference
from kdx.ops._topk_kl.targets import refuse_twice

__all__ = ["loss_of"]


def _topk_kl(student: Tensor, ids: Tensor, known: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    rows, options, grad = Rows(*arguments[:3]), Options(*arguments[3:-1]), arguments[-1]
    name, module = _dispatch.select("topk_kl", options.backend, student)
    if name != "cpu":
        refuse_twice(ids, sampled=options.tail == SAMPLED)
    with torch.autocast(student.device.type, enabled=False):
        losses, gradient = module.forward(student, ids, known, rows, options, grad=grad)
    loss = losses.sum(dtype=torch.float64).to(losses.dtype) if options.reduce else losses
    return loss, student.new_empty(0) if gradient is None else gradient


def _topk_kl_fake(student: Tensor, ids: Tensor, known: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    options, grad = Options(*arguments[3:-1]), arguments[-1]
    loss = student.new_empty(() if options.reduce else student.shape[:1], dtype=accumulator(student))
    made = torch.empty_like(student, memory_format=torch.contiguous_format) if grad else student.new_empty(0)
    return loss, made


define(
    "topk_kl(Tensor student, Tensor ids, Tensor known, Tensor kl_rows, Tensor? labels, Tensor? ce_rows, int classes, "
    "int tail, float temperature, int divergence, float beta, float kl_scale, float ce_scale, bool reduce, "
    "str backend, bool grad) -> (Tensor, Tensor)",
    _topk_kl,
    _topk_kl_fake,
)


def _by_definition(student: Tensor, ids: Tensor, known: Tensor, rows: Rows, options: Options) -> Tensor:
    with torch.autocast(student.device.type, enabled=False):
        losses = reference.losses(student, ids, known, rows, options)
    return losses.sum() if options.reduce else losses


class _Loss(torch.autograd.Function):
    """Row losses or their sum; where rows are summed, the gradient is made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, options: Options, once: bool, student: Tensor, *others: Tensor | None) -> Tensor:
        early = options.reduce and student.dtype != torch.float16  # which has no room for it before a loss scale
        loss, made = torch.ops.kdx.topk_kl(student, *others, *options, early)
        inputs = (None,) * 6 if once and early else (student, *others)
        ctx.save_for_backward(*inputs, made if early else None)
        ctx.options, ctx.once = options, once
        result: Tensor = loss
        return result

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        student, ids, known, kl, labels, ce, made = ctx.saved_tensors
        options, rows = ctx.options, Rows(kl, labels, ce)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            if ctx.once:
                raise RuntimeError(
                    "topk_kl: create_graph=True asks for a second derivative of a loss that was made with "
                    "once_differentiable=True, as schemes make theirs, and has kept nothing but its gradient; call the "
                    "op, or the knowledge component, yourself and leave once_differentiable out"
                )
            loss = _by_definition(student, ids, known, rows, options)
            (found,) = torch.autograd.grad(loss, student, upstream, create_graph=True)
        elif made is not None:
            found = scaled(made, upstream)
        else:
            rows = Rows(kl * upstream, labels, None if ce is None else ce * upstream)
            _, found = torch.ops.kdx.topk_kl(student, ids, known, *rows, *options._replace(reduce=True), True)
        return None, None, found, *[None] * 5


def loss_of(student: Tensor, ids: Tensor, known: Tensor, rows: Rows, options: Options, *, once: bool = False) -> Tensor:
    """Row losses ``[N]`` or their sum, differentiable with respect to the student's logits ``[N, V]``.

    ``once``: nothing but the gradient is kept, where it is made in the forward pass.
    """
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return _by_definition(student, ids, known, rows, options)
    if not (torch.is_grad_enabled() and student.requires_grad):
        result: Tensor = torch.ops.kdx.topk_kl(student, ids, known, *rows, *options, False)[0]
        return result
    apply: Any = _Loss.apply
    found: Tensor = apply(options, once, student, ids, known, *rows)
    return found
