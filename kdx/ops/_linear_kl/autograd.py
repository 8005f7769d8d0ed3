"""The op as torch sees it: ``kdx::linear_kl``, and the autograd function around it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdx.ops import _dispatch
from kdx.ops._dtypes import accumulator
from kdx.ops._library import define
from kdx.ops._linear_kl import reference
from kdx.ops._linear_kl.call import Options, Rows, Side, Wanted

__all__ = ["loss_of", "scaled"]

_TENSORS = 10
"""How many arguments of the op are tensors or None: those of the two sides, then the numbers of the rows."""


def _sides(tensors: tuple[Any, ...], numbers: tuple[float, ...]) -> tuple[Side, Side]:
    """The two sides of the op's flat arguments."""
    student, teacher = Side(*tensors[:3], *numbers[::2]), Side(*tensors[3:6], *numbers[1::2])
    return student, teacher._replace(ids=tensors[6])


def _linear_kl(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tensors, numbers, rest = arguments[:_TENSORS], arguments[_TENSORS : _TENSORS + 4], arguments[_TENSORS + 4 :]
    student, teacher = _sides(tensors, numbers)
    options, wanted = Options(*rest[:-3]), Wanted(*rest[-3:])
    _, module = _dispatch.select("linear_kl", options.backend, student.hidden, teacher.hidden)
    with torch.autocast(student.hidden.device.type, enabled=False):
        losses, made = module.forward(student, teacher, Rows(*tensors[7:]), options, wanted)
    # float64 keeps the sum of the rows the same however they are cut into chunks
    loss = losses.sum(dtype=torch.float64).to(losses.dtype) if options.reduce else losses
    return loss, *(student.hidden.new_empty(0) if each is None else each for each in made)


def _linear_kl_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hidden, weight, bias = arguments[:3]
    options, wanted = Options(*arguments[_TENSORS + 4 : -3]), Wanted(*arguments[-3:])
    loss = hidden.new_empty(() if options.reduce else hidden.shape[:1], dtype=accumulator(hidden, weight))
    shown = zip((hidden, weight, bias), wanted, strict=True)
    return loss, *(
        torch.empty_like(x, memory_format=torch.contiguous_format) if want else hidden.new_empty(0) for x, want in shown
    )


define(
    "linear_kl(Tensor student, Tensor student_weight, Tensor? student_bias, Tensor teacher, Tensor? teacher_weight, "
    "Tensor? teacher_bias, Tensor? ids, Tensor kl_rows, Tensor? labels, Tensor? ce_rows, float student_scale, "
    "float teacher_scale, float student_softcap, float teacher_softcap, int classes, int tail, float temperature, "
    "int divergence, float beta, float kl_scale, float ce_scale, bool reduce, str backend, bool for_hidden, "
    "bool for_weight, bool for_bias) -> (Tensor, Tensor, Tensor, Tensor)",
    _linear_kl,
    _linear_kl_fake,
)


def _run(tensors: tuple[Any, ...], numbers: tuple[float, ...], options: Options, wanted: Wanted) -> list[Tensor | None]:
    """The loss, then the gradients, None where they are not wanted."""
    loss, *made = torch.ops.kdx.linear_kl(*tensors, *numbers, *options, *wanted)
    return [loss, *(each if want else None for each, want in zip(made, wanted, strict=True))]


def _by_definition(tensors: tuple[Any, ...], numbers: tuple[float, ...], options: Options) -> Tensor:
    student, teacher = _sides(tensors, numbers)
    with torch.autocast(student.hidden.device.type, enabled=False):
        losses = reference.losses(student, teacher, Rows(*tensors[7:]), options)
    return losses.sum() if options.reduce else losses


class _Loss(torch.autograd.Function):
    """Row losses or their sum; where rows are summed, gradients are made in the forward pass, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, numbers: tuple[float, ...], options: Options, *tensors: Tensor | None) -> Tensor:
        # Rows that are not summed have one upstream gradient each: their backward runs the op again.
        wanted = Wanted(*(options.reduce and needed for needed in ctx.needs_input_grad[2:5]))
        loss, *made = _run(tensors, numbers, options, wanted)
        ctx.save_for_backward(*tensors, *made)
        ctx.numbers, ctx.options = numbers, options
        assert loss is not None
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        tensors, made = ctx.saved_tensors[:_TENSORS], ctx.saved_tensors[_TENSORS:]
        numbers, options, needed = ctx.numbers, ctx.options, ctx.needs_input_grad[2:5]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            student, teacher = _sides(tensors, numbers)
            each = upstream.expand(student.hidden.shape[0])
            with torch.autocast(student.hidden.device.type, enabled=False):
                made = reference.gradients(student, teacher, Rows(*tensors[7:]), options, Wanted(*needed), each)
        elif options.reduce:
            made = [None if each is None else scaled(each, upstream) for each in made]
        else:
            kl, labels, ce = tensors[7:]
            rows = (kl * upstream, labels, None if ce is None else ce * upstream)
            _, *made = _run((*tensors[:7], *rows), numbers, options._replace(reduce=True), Wanted(*needed))
        return None, None, *made, *[None] * 7


def scaled(gradient: Tensor, upstream: Tensor) -> Tensor:
    """``gradient * upstream``; ``gradient`` is left alone for a second backward."""
    if upstream.device.type == "cpu" and not torch.compiler.is_compiling() and upstream.item() == 1.0:
        return gradient
    return (gradient * upstream).to(gradient.dtype)


def loss_of(student: Side, teacher: Side, rows: Rows, options: Options) -> Tensor:
    """Row losses ``[N]`` or their sum, differentiable with respect to the student's side."""
    tensors = (*student[:3], *teacher[:3], teacher.ids, *rows)
    numbers = (student.scale, teacher.scale, student.softcap, teacher.softcap)
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return _by_definition(tensors, numbers, options)
    if not (torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in student[:3])):
        loss, *_ = _run(tensors, numbers, options, Wanted(hidden=False, weight=False, bias=False))
        assert loss is not None
        return loss
    apply: Any = _Loss.apply
    result: Tensor = apply(numbers, options, *tensors)
    return result
