"""The op as torch sees it: ``kdx::softmax_kl`` and ``kdx::scale_grad``, and the autograd functions around them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdx.ops import _dispatch
from kdx.ops._dtypes import accumulator
from kdx.ops._launch import dense_in_memory
from kdx.ops._library import define
from kdx.ops._softmax_kl import reference
from kdx.ops._softmax_kl.rows import as_rows, from_rows

__all__ = ["BY_ENTRIES", "BY_NOTHING", "BY_ROWS", "Options", "Rows", "loss_of"]

# What a sum over rows is divided by: nothing, the rows, or rows times classes. The division happens where the op runs,
# so that a traced graph is good for every batch size.
BY_NOTHING, BY_ROWS, BY_ENTRIES = 0, 1, 2
_SWAPPED = {
    reference.FORWARD: reference.REVERSE,
    reference.REVERSE: reference.FORWARD,
    reference.JSD: reference.JSD,
    reference.SKEW_FORWARD: reference.SKEW_REVERSE,
    reference.SKEW_REVERSE: reference.SKEW_FORWARD,
}


class Options(NamedTuple):
    """Everything about a call that is not a tensor; README.md section "Backends" says what the numbers mean."""

    temperature: float
    divergence: int
    beta: float
    kl_scale: float
    ce_scale: float
    divide: int
    reduce: bool
    backend: str

    def swapped(self) -> Options:
        """The call whose student gradient is this call's teacher gradient."""
        return self._replace(divergence=_SWAPPED[self.divergence], beta=1.0 - self.beta, ce_scale=0.0)

    def divided_scale(self, rows: int, classes: int) -> float:
        """``kl_scale`` with the division carried out."""
        if self.divide == BY_NOTHING:
            return self.kl_scale
        return self.kl_scale / max(rows * (classes if self.divide == BY_ENTRIES else 1), 1)


class Rows(NamedTuple):
    """Tensors with one number per row, ``[R]``: coefficients of the two terms, and labels."""

    kl: Tensor | None
    labels: Tensor | None
    ce: Tensor | None

    def swapped(self) -> Rows:
        """The part of them that the teacher's gradient depends on: the cross-entropy is not in it."""
        return Rows(self.kl, None, None)


def _call(student: Tensor, teacher: Tensor, rows: Rows, options: Options, grad: bool) -> tuple[Tensor, Tensor | None]:
    """Run a backend on ``[O, C, I]``."""
    O, C, I = student.shape  # noqa: E741  # the names of the contract
    temperature, divergence, beta, _, ce_scale, _, reduce, backend = options
    _, module = _dispatch.select("softmax_kl", backend, student, teacher)
    scale = options.divided_scale(O * I, C)
    result: tuple[Tensor, Tensor | None] = module.forward(
        student, teacher, *rows, temperature, divergence, beta, scale, ce_scale, reduce, grad
    )
    return result


def _softmax_kl(student: Tensor, teacher: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *options, grad = arguments[3:]
    loss, gradient = _call(student, teacher, Rows(*arguments[:3]), Options(*options), grad)
    return loss, student.new_empty(0) if gradient is None else gradient


def _softmax_kl_fake(student: Tensor, teacher: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *options, grad = arguments[3:]
    shape = () if Options(*options).reduce else (student.shape[0], student.shape[2])
    loss = student.new_empty(shape, dtype=accumulator(student))
    return loss, torch.empty_like(student) if grad else student.new_empty(0)


def _scale_grad(grad: Tensor, upstream: Tensor, backend: str) -> Tensor:
    _, module = _dispatch.select("softmax_kl", backend, grad, grad)
    result: Tensor = module.scale_grad(grad, upstream)
    return result


define(
    "softmax_kl(Tensor student, Tensor teacher, Tensor? kl_rows, Tensor? labels, Tensor? ce_rows, float temperature, "
    "int divergence, float beta, float kl_scale, float ce_scale, int divide, bool reduce, str backend, bool grad) "
    "-> (Tensor, Tensor)",
    _softmax_kl,
    _softmax_kl_fake,
)
define(
    "scale_grad(Tensor grad, Tensor upstream, str backend) -> Tensor",
    _scale_grad,
    lambda grad, upstream, backend: torch.empty_like(grad),
)


def _plain(x: Tensor) -> bool:
    """Whether a backend may be called on it directly: the dispatcher costs more than a small kernel."""
    return type(x) is Tensor and not torch.compiler.is_compiling() and not _transformed()


def _transformed() -> bool:
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def _run(
    student: Tensor, teacher: Tensor, rows: Rows, options: Options, dim: int, grad: bool
) -> tuple[Tensor, Tensor | None]:
    """One call on tensors of any shape; the gradient has the student's."""
    s, t = as_rows(student, dim), as_rows(teacher, dim)
    if _plain(s) and type(t) is Tensor:
        loss, gradient = _call(s, t, rows, options, grad)
    else:
        loss, gradient = torch.ops.kdx.softmax_kl(s, t, *rows, *options, grad)
    return loss, from_rows(gradient, student.shape, dim) if grad and gradient is not None else None


def _by_formula(student: Tensor, teacher: Tensor, rows: Rows, options: Options, dim: int, upstream: Tensor) -> Tensor:
    """The gradient with respect to the student in plain PyTorch, which autograd can follow."""
    s, t = as_rows(student, dim), as_rows(teacher, dim)
    O, C, I = s.shape  # noqa: E741
    temperature, divergence, beta, _, ce_scale, *_ = options
    scale = options.divided_scale(O * I, C)
    gradient = reference.gradient(s, t, *rows, temperature, divergence, beta, scale, ce_scale)
    gradient = gradient * (upstream if options.reduce else upstream.unsqueeze(1))
    return from_rows(gradient.to(student.dtype), student.shape, dim)


def _scaled(grad: Tensor, upstream: Tensor, backend: str) -> Tensor:
    """``grad * upstream``, the upstream read where it lies.

    Where no graph is kept nobody asks for ``grad`` again, and it is scaled in place, by a kernel that leaves at once
    where the upstream is 1; otherwise it is left alone for a second backward.
    """
    if not _plain(grad):
        result: Tensor = torch.ops.kdx.scale_grad(grad, upstream, backend)
        return result
    kept = _graph_kept()
    if upstream.device.type == "cpu" and upstream.item() == 1.0:
        return grad.clone() if kept else grad  # a caller may overwrite what it is given
    if not kept and dense_in_memory(grad):
        _, module = _dispatch.select("softmax_kl", backend, grad, grad)
        in_place = getattr(module, "scale_grad_", None)
        if in_place is not None:
            in_place(grad, upstream)
            return grad
    return _scale_grad(grad, upstream, backend)


def _graph_kept() -> bool:
    """Whether the backward pass that runs keeps its graph; True where torch does not tell."""
    tells = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return tells is None or bool(tells())


def _early(student: Tensor, options: Options, grad_dtype: torch.dtype | None) -> bool:
    """Whether gradients are made in the forward pass: not in float16, too narrow for them before a loss scale."""
    return options.reduce and torch.float16 not in (student.dtype, grad_dtype)


class _Loss(torch.autograd.Function):
    """Row losses ``[O, I]`` or their sum; where rows are summed, gradients are made in the forward pass."""

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
        grad_dtype: torch.dtype | None,
        once: bool,
    ) -> Tensor:
        rows = Rows(kl_rows, labels, ce_rows)
        # Rows that are not summed have one upstream gradient each: their backward runs the op again.
        early = _early(student, options, grad_dtype)
        for_student, for_teacher = (early and needed for needed in ctx.needs_input_grad[:2])
        loss, grad_s = _run(student, teacher, rows, options, dim, for_student)
        grad_t = None
        if for_teacher:
            _, grad_t = _run(teacher, student, rows.swapped(), options.swapped(), dim, True)
        grad_s, grad_t = (x if x is None or grad_dtype is None else x.to(grad_dtype) for x in (grad_s, grad_t))
        inputs = (None,) * 5 if once and early else (student, teacher, *rows)
        ctx.save_for_backward(*inputs, grad_s, grad_t)
        ctx.options, ctx.dim, ctx.grad_dtype, ctx.once = options, dim, grad_dtype, once
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, kl_rows, labels, ce_rows, grad_s, grad_t = ctx.saved_tensors
        options, dim, rows = ctx.options, ctx.dim, Rows(kl_rows, labels, ce_rows)
        if ctx.once and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "create_graph=True asks for a second derivative of a loss that was made with once_differentiable=True, "
                "as schemes make theirs, and has kept nothing but its gradient; call the op, or the knowledge "
                "component, yourself and leave once_differentiable out"
            )
        for_student = for_teacher = None
        if ctx.needs_input_grad[0]:
            for_student = _backward(student, teacher, rows, options, dim, grad_s, upstream)
        if ctx.needs_input_grad[1]:
            swapped = options.swapped()
            for_teacher = _backward(teacher, student, rows.swapped(), swapped, dim, grad_t, upstream)
        if ctx.grad_dtype is not None:
            for_student, for_teacher = (None if x is None else x.to(ctx.grad_dtype) for x in (for_student, for_teacher))
        return for_student, for_teacher, *[None] * 7


def _backward(
    student: Tensor,
    teacher: Tensor,
    rows: Rows,
    options: Options,
    dim: int,
    grad: Tensor | None,
    upstream: Tensor,
) -> Tensor:
    """Gradient with respect to the student; ``grad``, where there is one, is that gradient for an upstream of 1."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
        return _by_formula(student, teacher, rows, options, dim, upstream)
    if grad is not None:
        return _scaled(grad, upstream, options.backend)
    each = upstream.reshape(-1)
    kl = each.expand(student.numel() // student.shape[dim]).contiguous() if rows.kl is None else rows.kl * each
    ce = None if rows.ce is None else rows.ce * each
    _, result = _run(student, teacher, Rows(kl, rows.labels, ce), options._replace(reduce=True), dim, True)
    assert result is not None
    return result


class _TransformedLoss(torch.autograd.Function):
    """The same under torch.func transforms: vmap folds its dimension into the rows, gradients are the formulas'."""

    @staticmethod
    def forward(
        student: Tensor,
        teacher: Tensor,
        kl_rows: Tensor | None,
        labels: Tensor | None,
        ce_rows: Tensor | None,
        options: Options,
        dim: int,
    ) -> Tensor:
        return _run(student, teacher, Rows(kl_rows, labels, ce_rows), options, dim, False)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.options, ctx.dim = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, *row_tensors = ctx.saved_tensors
        options, dim, rows = ctx.options, ctx.dim, Rows(*row_tensors)
        for_student = for_teacher = None
        if ctx.needs_input_grad[0]:
            for_student = _by_formula(student, teacher, rows, options, dim, upstream)
        if ctx.needs_input_grad[1]:
            for_teacher = _by_formula(teacher, student, rows.swapped(), options.swapped(), dim, upstream)
        return for_student, for_teacher, None, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        *tensors, options, dim = inputs
        B = info.batch_size

        def leading(x: Tensor | None, at: int | None) -> Tensor | None:
            if x is None:
                return None
            return x.unsqueeze(0).expand(B, *x.shape) if at is None else x.movedim(at, 0)

        student, teacher, *row_tensors = (leading(x, at) for x, at in zip(tensors, in_dims[:5], strict=True))
        assert student is not None
        assert teacher is not None
        classes = student.shape[dim + 1]
        scale = options.divided_scale(student[0].numel() // classes, classes)
        one = options._replace(kl_scale=scale, divide=BY_NOTHING, reduce=False)
        rows = Rows(*(None if x is None else x.reshape(-1).contiguous() for x in row_tensors))
        losses = loss_of(student, teacher, rows, one, dim + 1)
        if options.reduce:
            return losses.reshape(B, -1).sum(1), 0
        return losses.reshape(B, *as_rows(student[0], dim).shape[::2]), 0


def loss_of(
    student: Tensor,
    teacher: Tensor,
    rows: Rows,
    options: Options,
    dim: int,
    grad_dtype: torch.dtype | None = None,
    *,
    once: bool = False,
) -> Tensor:
    """Row losses ``[O, I]`` or their sum, differentiable with respect to student and teacher.

    ``grad_dtype``: that the gradients are kept in, where they are kept. ``once``: nothing else is kept beside them.
    """
    if _transformed():
        transformed: Any = _TransformedLoss.apply
        found: Tensor = transformed(student, teacher, *rows, options, dim)
        return found
    if not (torch.is_grad_enabled() and (student.requires_grad or teacher.requires_grad)):
        return _run(student, teacher, rows, options, dim, False)[0]
    apply: Any = _Loss.apply
    loss: Tensor = apply(student, teacher, *rows, options, dim, grad_dtype, once)
    return loss
