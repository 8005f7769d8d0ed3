"""The op as torch sees it: ``kdx::linear_kl``, and the autograd function around it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdx.ops import _dispatch
from kdx.ops._dtypes import accumulator
from kdx.ops._library import define
from kdx.ops._linear_kl import reference
from kdx.ops._linear_kl.call import COMMON, SAMPLED, Options, Rows, Side, Wanted
from kdx.ops._topk_kl.targets import refuse_twice

__all__ = ["loss_of", "scaled"]

_TENSORS = 11
"""How many arguments of the op are tensors or None: those of the two sides, then the numbers of the rows."""
_ALIKE = 1e-6
"""Upstream gradients of the two terms that differ by less than this share of the larger one count as equal."""


def _sides(tensors: tuple[Any, ...], numbers: tuple[float, ...]) -> tuple[Side, Side]:
    """The two sides of the op's flat arguments."""
    student, teacher = Side(*tensors[:3], *numbers[::2]), Side(*tensors[3:6], *numbers[1::2])
    return student._replace(ids=tensors[7]), teacher._replace(ids=tensors[6])


def _parts(arguments: tuple[Any, ...]) -> tuple[Any, Any, Options, Wanted, bool]:
    """The op's flat arguments: tensors, numbers of the heads, options, gradients wanted, whether terms stay apart."""
    tensors, numbers, rest = arguments[:_TENSORS], arguments[_TENSORS : _TENSORS + 4], arguments[_TENSORS + 4 :]
    return tensors, numbers, Options(*rest[:-4]), Wanted(*rest[-4:-1]), rest[-1]


def _linear_kl(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tensors, numbers, options, wanted, apart = _parts(arguments)
    student, teacher = _sides(tensors, numbers)
    name, module = _dispatch.select("linear_kl", options.backend, student.hidden, teacher.hidden)
    if teacher.ids is not None and options.tail != COMMON and name != "cpu":
        refuse_twice(teacher.ids, sampled=options.tail == SAMPLED)
    with torch.autocast(student.hidden.device.type, enabled=False):
        losses, made = module.forward(student, teacher, Rows(*tensors[8:]), options, wanted, apart=apart)
    # float64 keeps the sum of the rows the same however they are cut into chunks
    loss = losses.sum(-1, dtype=torch.float64).to(losses.dtype) if options.reduce else losses
    return loss, *(student.hidden.new_empty(0) if each is None else each for each in made)


def _linear_kl_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (hidden, weight, bias, *_), _, options, wanted, apart = _parts(arguments)
    shape = ((2,) if apart else ()) + (() if options.reduce else tuple(hidden.shape[:1]))
    loss = hidden.new_empty(shape, dtype=accumulator(hidden, weight))
    shown = zip((hidden, weight, bias), wanted, strict=True)
    return loss, *(
        torch.empty_like(x, memory_format=torch.contiguous_format) if want else hidden.new_empty(0) for x, want in shown
    )


def _again_as_op(upstream: Tensor, made: list[Tensor], *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    tensors, numbers, options, wanted, _ = _parts(arguments)
    kept = [each if want else None for each, want in zip(made, wanted, strict=True)]
    found = _again(upstream, kept, tensors, numbers, options, wanted)
    return tuple(  # type: ignore[return-value]
        upstream.new_empty(0) if each is None else each.clone() if each is old else each
        for each, old in zip(found, made, strict=True)
    )


_ARGUMENTS = (
    "Tensor student, Tensor student_weight, Tensor? student_bias, Tensor teacher, Tensor? teacher_weight, "
    "Tensor? teacher_bias, Tensor? ids, Tensor? student_ids, Tensor kl_rows, Tensor? labels, Tensor? ce_rows, "
    "float student_scale, float teacher_scale, float student_softcap, float teacher_softcap, int classes, int tail, "
    "float temperature, "
    "int divergence, float beta, float kl_scale, float ce_scale, bool reduce, str backend, bool for_hidden, "
    "bool for_weight, bool for_bias, bool apart"
)
define(f"linear_kl({_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)", _linear_kl, _linear_kl_fake)
define(
    f"linear_kl_again(Tensor upstream, Tensor[] made, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    _again_as_op,
    lambda upstream, made, *arguments: tuple(
        torch.empty_like(x, memory_format=torch.contiguous_format) if want else upstream.new_empty(0)
        for x, want in zip(_parts(arguments)[0][:3], _parts(arguments)[3], strict=True)
    ),
)


def _run(
    tensors: tuple[Any, ...], numbers: tuple[float, ...], options: Options, wanted: Wanted, apart: bool = False
) -> list[Tensor | None]:
    """The loss, then the gradients, None where they are not wanted."""
    loss, *made = torch.ops.kdx.linear_kl(*tensors, *numbers, *options, *wanted, apart)
    return [loss, *(each if want else None for each, want in zip(made, wanted, strict=True))]


def _early(tensors: tuple[Any, ...], options: Options) -> bool:
    """Whether gradients are made in the forward pass: not in float16, too narrow for them before a loss scale."""
    return options.reduce and torch.float16 not in (tensors[0].dtype, tensors[1].dtype)


def _again(
    upstream: Tensor,
    made: list[Tensor | None],
    tensors: tuple[Any, ...],
    numbers: tuple[float, ...],
    options: Options,
    wanted: Wanted,
) -> list[Tensor | None]:
    """The gradients for the two terms' own ``upstream [2]``: ``made`` scaled where both are the same, else new ones."""
    of_kl, of_ce = upstream.tolist()  # waits for the device, where making the gradients would have waited as well
    if _early(tensors, options) and abs(of_kl - of_ce) <= _ALIKE * max(abs(of_kl), abs(of_ce)):
        return [None if each is None else scaled(each, upstream[0]) for each in made]
    return _run((*tensors[:8], *_times(Rows(*tensors[8:]), *upstream)), numbers, options, wanted)[1:]


def _times(rows: Rows, of_kl: Tensor, of_ce: Tensor) -> Rows:
    """Rows whose terms are multiplied."""
    return Rows(rows.kl * of_kl, rows.labels, None if rows.ce is None else rows.ce * of_ce)


def _by_definition(tensors: tuple[Any, ...], numbers: tuple[float, ...], options: Options, apart: bool) -> Tensor:
    student, teacher = _sides(tensors, numbers)
    rows = Rows(*tensors[8:])
    with torch.autocast(student.hidden.device.type, enabled=False):
        if apart:
            return torch.stack([reference.losses(student, teacher, each, options).sum() for each in rows.terms()])
        losses = reference.losses(student, teacher, rows, options)
    return losses.sum() if options.reduce else losses


def _to_be_differentiated(
    upstream: Tensor,
    tensors: tuple[Any, ...],
    numbers: tuple[float, ...],
    options: Options,
    wanted: Wanted,
    apart: bool,
) -> list[Tensor | None]:
    """The gradients by the definition, which autograd can follow."""
    student, teacher = _sides(tensors, numbers)
    rows, each = Rows(*tensors[8:]), (student.hidden.shape[0],)
    with torch.autocast(student.hidden.device.type, enabled=False):
        if not apart:
            return list(reference.gradients(student, teacher, rows, options, wanted, upstream.expand(each)))
        both = [
            reference.gradients(student, teacher, term, options, wanted, of_it.expand(each))
            for term, of_it in zip(rows.terms(), upstream, strict=True)
        ]
    return [None if a is None or b is None else a + b for a, b in zip(*both, strict=True)]


class _Loss(torch.autograd.Function):
    """Row losses, their sum, or the sums of the two terms; of sums, gradients are made in the forward pass.

    Those of two terms are made as if both had the same upstream gradient, which a sum of them has.
    """

    @staticmethod
    def forward(ctx: Any, numbers: tuple[float, ...], options: Options, apart: bool, *tensors: Tensor | None) -> Tensor:
        # Rows that are not summed have one upstream gradient each: their backward runs the op again.
        wanted = Wanted(*(_early(tensors, options) and needed for needed in ctx.needs_input_grad[3:6]))
        loss, *made = _run(tensors, numbers, options, wanted, apart)
        ctx.save_for_backward(*tensors, *made)
        ctx.numbers, ctx.options, ctx.apart = numbers, options, apart
        assert loss is not None
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # looked at once: under a checkpoint they are there only once
        tensors, made = saved[:_TENSORS], list(saved[_TENSORS:])
        numbers, options, apart, wanted = ctx.numbers, ctx.options, ctx.apart, Wanted(*ctx.needs_input_grad[3:6])
        compiling = torch.compiler.is_compiling()
        if torch.is_grad_enabled() and not compiling:  # create_graph=True
            made = _to_be_differentiated(upstream, tensors, numbers, options, wanted, apart)
        elif apart and compiling:
            given = [upstream.new_empty(0) if each is None else each for each in made]
            found = torch.ops.kdx.linear_kl_again(upstream, given, *tensors, *numbers, *options, *wanted, apart)
            made = [each if want else None for each, want in zip(found, wanted, strict=True)]
        elif apart:
            made = _again(upstream, made, tensors, numbers, options, wanted)
        elif _early(tensors, options):
            made = [None if each is None else scaled(each, upstream) for each in made]
        else:
            rows = _times(Rows(*tensors[8:]), upstream, upstream)
            _, *made = _run((*tensors[:8], *rows), numbers, options._replace(reduce=True), wanted)
        return None, None, None, *made, *[None] * 8


def scaled(gradient: Tensor, upstream: Tensor) -> Tensor:
    """``gradient * upstream``; ``gradient`` is left alone for a second backward."""
    if upstream.device.type == "cpu" and not torch.compiler.is_compiling() and upstream.item() == 1.0:
        return gradient
    if upstream.device.type == "cpu":
        return (gradient * upstream).to(gradient.dtype)
    # of one dimension, so that a gradient in half precision is multiplied in the upstream's dtype
    return torch.mul(gradient, upstream.reshape(1), out=torch.empty_like(gradient))


def loss_of(student: Side, teacher: Side, rows: Rows, options: Options, *, apart: bool = False) -> Tensor:
    """Row losses ``[N]``, their sum, or of ``apart`` the sums ``[2]`` of the two terms.

    Differentiable with respect to the student's side.
    """
    tensors = (*student[:3], *teacher[:3], teacher.ids, student.ids, *rows)
    numbers = (student.scale, teacher.scale, student.softcap, teacher.softcap)
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return _by_definition(tensors, numbers, options, apart)
    if not (torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in student[:3])):
        loss, *_ = _run(tensors, numbers, options, Wanted(hidden=False, weight=False, bias=False), apart)
        assert loss is not None
        return loss
    apply: Any = _Loss.apply
    result: Tensor = apply(numbers, options, apart, *tensors)
    return result
