"""The op as torch sees it: ``kdx::softmax_kl`` and ``kdx::scale_grad``, and the autograd function around them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from kdx.ops import _dispatch
from kdx.ops._library import define
from kdx.ops._rows import as_rows, from_rows
from kdx.ops.softmax_kl import reference

__all__ = ["BY_ENTRIES", "BY_NOTHING", "BY_ROWS", "Options", "loss_of"]

# What a sum over rows is divided by: nothing, the rows, or rows times classes. The division happens where the op runs, so
# that a traced graph is good for every batch size.
BY_NOTHING, BY_ROWS, BY_ENTRIES = 0, 1, 2
_SWAPPED = {reference.FORWARD: reference.REVERSE, reference.REVERSE: reference.FORWARD, reference.JSD: reference.JSD}


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

    def per_row(self) -> Options:
        """The same rows, not summed."""
        return self._replace(reduce=False)


def _divided(kl_scale: float, divide: int, student: Tensor) -> float:
    O, C, I = student.shape  # noqa: E741
    if divide == BY_NOTHING:
        return kl_scale
    return kl_scale / max(O * I * (C if divide == BY_ENTRIES else 1), 1)


def _op(
    student: Tensor,
    teacher: Tensor,
    kl_rows: Tensor | None,
    labels: Tensor | None,
    ce_rows: Tensor | None,
    temperature: float,
    divergence: int,
    beta: float,
    kl_scale: float,
    ce_scale: float,
    divide: int,
    reduce: bool,
    backend: str,
    grad: bool,
) -> tuple[Tensor, Tensor | None]:
    _, module = _dispatch.select("softmax_kl", backend, student, teacher)
    scale = _divided(kl_scale, divide, student)
    result: tuple[Tensor, Tensor | None] = module.forward(
        student, teacher, kl_rows, labels, ce_rows, temperature, divergence, beta, scale, ce_scale, reduce, grad
    )
    return result


def _op_impl(student: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    loss, grad = _op(student, *arguments)
    return loss, student.new_empty(0) if grad is None else grad


def _op_fake(student: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *_, reduce, _backend, grad = arguments
    shape = () if reduce else (student.shape[0], student.shape[2])
    loss = student.new_empty(shape, dtype=reference.accumulator(student.dtype))
    return loss, torch.empty_like(student) if grad else student.new_empty(0)


def _scale_grad(grad: Tensor, upstream: Tensor, backend: str) -> Tensor:
    _, module = _dispatch.select("softmax_kl", backend, grad, grad)
    result: Tensor = module.scale_grad(grad, upstream)
    return result


define(
    "softmax_kl(Tensor student, Tensor teacher, Tensor? kl_rows, Tensor? labels, Tensor? ce_rows, float temperature, "
    "int divergence, float beta, float kl_scale, float ce_scale, int divide, bool reduce, str backend, bool grad) "
    "-> (Tensor, Tensor)",
    _op_impl,
    _op_fake,
)
define(
    "scale_grad(Tensor grad, Tensor upstream, str backend) -> Tensor",
    _scale_grad,
    lambda grad, upstream, backend: torch.empty_like(grad),
)


def _plain(x: Tensor) -> bool:
    """Whether the backend may be called directly, without the dispatcher (which costs more than a small kernel)."""
    return type(x) in (Tensor, Parameter) and not torch.compiler.is_compiling() and not _transformed()


def _transformed() -> bool:
    return torch._C._are_functorch_transforms_active()


def _run(
    student: Tensor,
    teacher: Tensor,
    kl_rows: Tensor | None,
    labels: Tensor | None,
    ce_rows: Tensor | None,
    options: Options,
    grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """One call on rows ``[O, C, I]``."""
    if _plain(student) and _plain(teacher):
        return _op(student, teacher, kl_rows, labels, ce_rows, *options, grad)
    loss, gradient = torch.ops.kdx.softmax_kl(student, teacher, kl_rows, labels, ce_rows, *options, grad)
    return loss, gradient if grad else None


class _Loss(torch.autograd.Function):
    """Loss rows ``[O, I]`` or their sum, with the gradients made in the forward pass where rows are summed."""

    @staticmethod
    def forward(
        student: Tensor,
        teacher: Tensor,
        kl_rows: Tensor | None,
        labels: Tensor | None,
        ce_rows: Tensor | None,
        options: Options,
        dim: int,
        student_grad: bool,
        teacher_grad: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        s, t = as_rows(student, dim), as_rows(teacher, dim)
        now = options.reduce  # rows that are not summed have one upstream gradient each: their backward recomputes
        loss, grad_s = _run(s, t, kl_rows, labels, ce_rows, options, student_grad and now)
        grad_t = _run(t, s, kl_rows, None, None, options.swapped(), True)[1] if teacher_grad and now else None
        return (
            loss,
            None if grad_s is None else from_rows(grad_s, student.shape, dim),
            None if grad_t is None else from_rows(grad_t, teacher.shape, dim),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        student, teacher, kl_rows, labels, ce_rows, options, dim, _, _ = inputs
        _, grad_s, grad_t = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(g for g in (grad_s, grad_t) if g is not None))
        ctx.save_for_backward(student, teacher, kl_rows, labels, ce_rows, grad_s, grad_t)
        ctx.options, ctx.dim = options, dim

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Any, ...]:
        student, teacher, kl_rows, labels, ce_rows, grad_s, grad_t = ctx.saved_tensors
        options, dim = ctx.options, ctx.dim
        for_student = for_teacher = None
        if upstream is not None:
            if ctx.needs_input_grad[0]:
                rows = (student, teacher, kl_rows, labels, ce_rows)
                for_student = _backward(rows, options, dim, grad_s, upstream)
            if ctx.needs_input_grad[1]:
                rows = (teacher, student, kl_rows, None, None)
                for_teacher = _backward(rows, options.swapped(), dim, grad_t, upstream)
        return for_student, for_teacher, None, None, None, None, None, None, None


def _backward(
    tensors: tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None],
    options: Options,
    dim: int,
    grad: Tensor | None,
    upstream: Tensor,
) -> Tensor:
    """Gradient with respect to the first tensor; ``grad``, where there is one, is that gradient for an upstream of 1."""
    student, teacher, kl_rows, labels, ce_rows = tensors
    again = torch.is_grad_enabled() and not torch.compiler.is_compiling()  # create_graph: formulas autograd can follow
    if again or (grad is None and options.reduce):
        s, t = as_rows(student, dim), as_rows(teacher, dim)
        scale = _divided(options.kl_scale, options.divide, s)
        formula = reference.gradient(
            s,
            t,
            kl_rows,
            labels,
            ce_rows,
            options.temperature,
            options.divergence,
            options.beta,
            scale,
            options.ce_scale,
        )
        rows = formula * (upstream if options.reduce else upstream.unsqueeze(1))
        return from_rows(rows.to(student.dtype), student.shape, dim)
    if options.reduce:
        assert grad is not None
        if _plain(grad):
            if upstream.device.type == "cpu" and upstream.item() == 1.0:
                return grad
            return _scale_grad(grad, upstream, options.backend)
        scaled: Tensor = torch.ops.kdx.scale_grad(grad, upstream, options.backend)
        return scaled
    s, t = as_rows(student, dim), as_rows(teacher, dim)
    u = upstream.reshape(-1)
    kl_rows = u.contiguous() if kl_rows is None else kl_rows * u
    ce_rows = None if ce_rows is None else ce_rows * u
    result = _run(s, t, kl_rows, labels, ce_rows, options._replace(reduce=True), True)[1]
    assert result is not None
    return from_rows(result, student.shape, dim)


def loss_of(
    student: Tensor,
    teacher: Tensor,
    kl_rows: Tensor | None,
    labels: Tensor | None,
    ce_rows: Tensor | None,
    options: Options,
    dim: int,
) -> Tensor:
    """Row losses ``[O, I]`` or their sum, differentiable with respect to student and teacher."""
    grads = torch.is_grad_enabled()
    for_student, for_teacher = grads and student.requires_grad, grads and teacher.requires_grad
    if not (for_student or for_teacher or _transformed()):
        return _run(as_rows(student, dim), as_rows(teacher, dim), kl_rows, labels, ce_rows, options, False)[0]
    apply: Any = _Loss.apply
    loss: Tensor = apply(student, teacher, kl_rows, labels, ce_rows, options, dim, for_student, for_teacher)[0]
    return loss
