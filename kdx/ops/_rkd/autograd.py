"""The losses as torch sees them: ``kdx::rkd``, and the autograd function around it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from kdx.ops import _dispatch
from kdx.ops._dtypes import accumulator
from kdx.ops._library import define
from kdx.ops._rkd import reference

__all__ = ["loss_of"]

_PLAIN = (Tensor, Parameter)


class Call(NamedTuple):
    """Everything about a call that is not a tensor, in the order of the op's arguments."""

    distance_weight: float
    angle_weight: float
    delta: float
    student_grad: bool
    teacher_grad: bool
    backend: str


def _op(
    student: Tensor,
    teacher: Tensor,
    distance_weight: float,
    angle_weight: float,
    delta: float,
    student_grad: bool,
    teacher_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    _, module = _dispatch.select("rkd", backend, student, teacher)
    result: tuple[Tensor, Tensor | None, Tensor | None] = module.forward(
        student, teacher, distance_weight, angle_weight, delta, student_grad, teacher_grad
    )
    return result


def _op_impl(student: Tensor, teacher: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    loss, grad_s, grad_t = _op(student, teacher, *arguments)
    return loss, _or_nothing(grad_s, loss), _or_nothing(grad_t, loss)


def _or_nothing(grad: Tensor | None, loss: Tensor) -> Tensor:
    return loss.new_empty(0) if grad is None else grad


def _op_fake(student: Tensor, teacher: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, student_grad, teacher_grad, _backend = arguments
    loss = student.new_empty((), dtype=accumulator(student, teacher))
    grads = [loss.new_empty(x.shape if want else 0) for x, want in ((student, student_grad), (teacher, teacher_grad))]
    return loss, grads[0], grads[1]


define(
    "rkd(Tensor student, Tensor teacher, float distance_weight, float angle_weight, float delta, bool student_grad, "
    "bool teacher_grad, str backend) -> (Tensor, Tensor, Tensor)",
    _op_impl,
    _op_fake,
)


def _run(student: Tensor, teacher: Tensor, call: Call) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if type(student) in _PLAIN and type(teacher) in _PLAIN and not torch.compiler.is_compiling() and not _transformed():
        return _op(student, teacher, *call)
    loss, grad_s, grad_t = torch.ops.kdx.rkd(student, teacher, *call)
    return loss, grad_s if call.student_grad else None, grad_t if call.teacher_grad else None


def _transformed() -> bool:
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


class _Loss(torch.autograd.Function):
    """The loss, with the gradients made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, call: Call) -> Tensor:
        loss, *grads = _run(student, teacher, call)
        ctx.save_for_backward(student, teacher, *grads)
        ctx.call = call
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        student, teacher, *grads = ctx.saved_tensors
        result: list[Tensor | None] = [None, None]
        wanted = [i for i in (0, 1) if ctx.needs_input_grad[i]]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # create_graph: formulas that autograd can follow. Views, because one input may have been made of the other,
            # and what passes from one to the other is added by the graph around this node.
            inputs = [x.view_as(x) for x in (student, teacher)]
            value = reference.loss(*inputs, *ctx.call[:3])
            found = (
                torch.autograd.grad(value, [inputs[i] for i in wanted], upstream, create_graph=True) if wanted else ()
            )
            for i, grad in zip(wanted, found, strict=True):
                result[i] = grad
        else:
            for i in wanted:
                result[i] = _scaled(grads[i], upstream, (student, teacher)[i].dtype)
        return *result, None


def _scaled(grad: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    """``grad * upstream``; the same tensor where the upstream is known to be 1, as ``loss.backward()`` has it."""
    readable = type(upstream) is Tensor and upstream.device.type == "cpu" and not torch.compiler.is_compiling()
    if readable and not _transformed() and upstream.item() == 1.0:
        return grad if grad.dtype == dtype else grad.to(dtype)
    return (grad * upstream).to(dtype)


class _TransformedLoss(torch.autograd.Function):
    """The same for torch.func transforms, which want it written in two functions; that costs 0.1 ms a call."""

    generate_vmap_rule = True

    @staticmethod
    def forward(student: Tensor, teacher: Tensor, call: Call) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return _run(student, teacher, call)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        student, teacher, ctx.call = inputs
        _, *grads = output
        ctx.mark_non_differentiable(*(g for g in grads if g is not None))
        ctx.save_for_backward(student, teacher, *grads)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Any, ...]:
        return _Loss.backward(ctx, upstream)


def loss_of(
    student: Tensor, teacher: Tensor, distance_weight: float, angle_weight: float, delta: float, backend: str
) -> Tensor:
    """The weighted losses, differentiable with respect to student and teacher."""
    grads, transformed = torch.is_grad_enabled(), _transformed()
    for_student, for_teacher = grads and student.requires_grad, grads and teacher.requires_grad
    call = Call(distance_weight, angle_weight, delta, for_student, for_teacher, backend)
    if not (for_student or for_teacher or transformed):
        return _run(student, teacher, call)[0]
    if teacher is student:
        teacher = student.view_as(student)  # dynamo does not trace an autograd function that is given one tensor twice
    apply: Any = _TransformedLoss.apply if transformed else _Loss.apply
    result = apply(student, teacher, call)
    loss: Tensor = result[0] if transformed else result
    return loss
