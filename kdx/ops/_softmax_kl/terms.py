"""The two terms of kd_loss apart, of one pass over the logits: ``kdx::softmax_kl_terms`` and its autograd function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdx.ops import _dispatch
from kdx.ops._dtypes import accumulator
from kdx.ops._library import define
from kdx.ops._softmax_kl import reference
from kdx.ops._softmax_kl.autograd import Options, Rows, _early, _plain, _run, _scaled, _transformed
from kdx.ops._softmax_kl.rows import as_rows, from_rows

__all__ = ["terms_of"]

_ALIKE = 1e-6
"""Upstream gradients of the two terms that differ by less than this share of the larger one count as equal."""


def _call(student: Tensor, teacher: Tensor, rows: Rows, options: Options, grad: bool) -> tuple[Tensor, Tensor | None]:
    """Runs a backend on ``[O, C, I]``: the sums ``[2]`` of the two terms, and the gradient of both."""
    O, C, I = student.shape  # noqa: E741  # the names of the contract
    temperature, divergence, beta, _, ce_scale, *_ = options
    _, module = _dispatch.select("softmax_kl", options.backend, student, teacher)
    apart = student.new_zeros(O * I, dtype=accumulator(student))
    scale = options.divided_scale(O * I, C)
    kl, gradient = module.forward(
        student, teacher, *rows, temperature, divergence, beta, scale, ce_scale, True, grad, ce_losses=apart
    )
    return torch.stack([kl, apart.sum(dtype=torch.float64).to(kl.dtype)]), gradient


def _terms(student: Tensor, teacher: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *options, grad = arguments[3:]
    loss, gradient = _call(student, teacher, Rows(*arguments[:3]), Options(*options), grad)
    return loss, student.new_empty(0) if gradient is None else gradient


def _terms_fake(student: Tensor, teacher: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    loss = student.new_empty(2, dtype=accumulator(student))
    return loss, torch.empty_like(student) if arguments[-1] else student.new_empty(0)


define(
    "softmax_kl_terms(Tensor student, Tensor teacher, Tensor? kl_rows, Tensor? labels, Tensor? ce_rows, "
    "float temperature, int divergence, float beta, float kl_scale, float ce_scale, int divide, bool reduce, "
    "str backend, bool grad) -> (Tensor, Tensor)",
    _terms,
    _terms_fake,
)


def _run_apart(
    student: Tensor, teacher: Tensor, rows: Rows, options: Options, dim: int, grad: bool
) -> tuple[Tensor, Tensor | None]:
    s, t = as_rows(student, dim), as_rows(teacher, dim)
    if _plain(s) and type(t) is Tensor:
        loss, gradient = _call(s, t, rows, options, grad)
    else:
        loss, gradient = torch.ops.kdx.softmax_kl_terms(s, t, *rows, *options, grad)
    return loss, from_rows(gradient, student.shape, dim) if grad and gradient is not None else None


def _times(rows: Rows, upstream: Tensor, number: int) -> Rows:
    """Rows ``[number]`` whose terms are multiplied by their upstream gradients ``[2]``."""
    of_kl, of_ce = upstream.unbind()
    kl = of_kl.expand(number).contiguous() if rows.kl is None else rows.kl * of_kl
    return Rows(kl, rows.labels, None if rows.ce is None else rows.ce * of_ce)


def _captured(x: Tensor) -> bool:
    """Whether a CUDA graph is recorded, in which nothing can wait for a number."""
    return x.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _by_formula(student: Tensor, teacher: Tensor, rows: Rows, options: Options, dim: int, upstream: Tensor) -> Tensor:
    """The gradient with respect to the student in plain PyTorch, which autograd can follow."""
    s, t = as_rows(student, dim), as_rows(teacher, dim)
    temperature, divergence, beta, _, ce_scale, *_ = options
    scale = options.divided_scale(s.shape[0] * s.shape[2], s.shape[1])
    numbers = temperature, divergence, beta
    gradient = upstream[0] * reference.gradient(s, t, rows.kl, None, None, *numbers, scale, 0.0)
    if rows.labels is not None:
        of_ce = reference.gradient(s, s.detach(), None, rows.labels, rows.ce, *numbers, 0.0, ce_scale)
        gradient = gradient + upstream[1] * of_ce
    return from_rows(gradient.to(student.dtype), student.shape, dim)


class _Terms(torch.autograd.Function):
    """The sums of the two terms ``[2]``.

    Their gradient is made in the forward pass as if both had the same upstream gradient, which a sum of them has. Both
    logits stay for the case that they have not, as where a step of several micro-batches has more rows than labels.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        kl_rows: Tensor | None,
        labels: Tensor | None,
        ce_rows: Tensor | None,
        options: Options,
        dim: int,
    ) -> Tensor:
        rows = Rows(kl_rows, labels, ce_rows)
        early = _early(student, options, None) and not torch.compiler.is_compiling() and not _captured(student)
        loss, made = _run_apart(student, teacher, rows, options, dim, early and ctx.needs_input_grad[0])
        ctx.save_for_backward(student, teacher, *rows, made)
        ctx.options, ctx.dim = options, dim
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, kl_rows, labels, ce_rows, made = ctx.saved_tensors
        options, dim, rows = ctx.options, ctx.dim, Rows(kl_rows, labels, ce_rows)
        number = student.numel() // student.shape[dim]
        sides: list[Tensor | None] = [None, None]
        for_student, for_teacher = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            if for_student:
                sides[0] = _by_formula(student, teacher, rows, options, dim, upstream)
            if for_teacher:
                sides[1] = _by_formula(teacher, student, rows.swapped(), options.swapped(), dim, upstream)
            return *sides, *[None] * 5
        if for_student and made is not None:
            of_kl, of_ce = upstream.tolist()  # waits for the device, once a step
            if abs(of_kl - of_ce) <= _ALIKE * max(abs(of_kl), abs(of_ce)):
                sides[0] = _scaled(made, upstream[0], options.backend)
        if for_student and sides[0] is None:
            _, sides[0] = _run(student, teacher, _times(rows, upstream, number), options, dim, True)
        if for_teacher:
            theirs = _times(rows.swapped(), upstream, number)
            _, sides[1] = _run(teacher, student, theirs, options.swapped(), dim, True)
        return *sides, *[None] * 5


def _by_definition(student: Tensor, teacher: Tensor, rows: Rows, options: Options, dim: int) -> Tensor:
    s, t = as_rows(student, dim), as_rows(teacher, dim)
    temperature, divergence, beta, _, ce_scale, *_ = options
    scale = options.divided_scale(s.shape[0] * s.shape[2], s.shape[1])
    kl = reference.losses(s, t, rows.kl, None, None, temperature, divergence, beta, scale, 0.0).sum()
    assert rows.labels is not None
    return torch.stack([kl, reference.cross_entropies(s, rows.labels, rows.ce, ce_scale).sum()])


def terms_of(student: Tensor, teacher: Tensor, rows: Rows, options: Options, dim: int) -> Tensor:
    """The sums ``[2]`` of the KL and of the cross-entropy, differentiable with respect to student and teacher."""
    if _transformed():
        return _by_definition(student, teacher, rows, options, dim)
    if not (torch.is_grad_enabled() and (student.requires_grad or teacher.requires_grad)):
        return _run_apart(student, teacher, rows, options, dim, False)[0]
    apply: Any = _Terms.apply
    loss: Tensor = apply(student, teacher, *rows, options, dim)
    return loss
