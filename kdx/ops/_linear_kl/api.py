"""linear_kl: what a user calls. Arguments are checked here, once; the mathematics is in README.md."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdx.ops._dtypes import accumulator
from kdx.ops._linear_kl.autograd import loss_of
from kdx.ops._linear_kl.call import DENSE, Options, Side
from kdx.ops._linear_kl.row_numbers import check_terms, coefficients_of
from kdx.ops._softmax_kl.api import divergence_of
from kdx.ops._topk_kl.api import sparse_call
from kdx.ops._topk_kl.targets import SparseTargets

__all__ = ["linear_kl"]


def linear_kl(
    student: Tensor,
    student_weight: Tensor,
    teacher: Tensor | SparseTargets,
    teacher_weight: Tensor | None = None,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    student_scale: float = 1.0,
    teacher_scale: float = 1.0,
    student_softcap: float | None = None,
    teacher_softcap: float | None = None,
    labels: Tensor | None = None,
    alpha: float = 1.0,
    temperature: float = 1.0,
    divergence: str = "forward",
    beta: float = 0.5,
    tail: str = "bucket",
    vocabulary: int | None = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    mask_by_labels: bool = True,
    reduction: str = "mean",
    num_items: float | Tensor | None = None,
    scale_by_t2: bool = True,
    backend: str = "auto",
) -> Tensor:
    """The distillation loss of a language model from hidden states, whose logits are never held whole.

    ``alpha T^2 KL + (1 - alpha) CE(labels)`` of the logits ``student @ student_weight.T``, as `softmax_kl` and
    `kd_loss` have it (Hinton et al. 2015, https://arxiv.org/abs/1503.02531), in chunks of rows: beside the gradients
    it takes the memory of one chunk of logits. Logits are float32, also of operands in half precision. Gradients reach
    the student's hidden states, weight and bias where they ask for one; the teacher's side gets none.

    Args:
        student: hidden states ``[..., H_s]``, float32, float64, bfloat16 or float16.
        student_weight: of its output layer, ``[V, H_s]``.
        teacher: hidden states ``[..., H_t]`` with ``teacher_weight``, else logits ``[..., V]``, or
            :class:`SparseTargets`, a few classes of each row.
        teacher_weight: of the teacher's output layer, ``[V, H_t]``.
        student_bias: of its output layer, ``[V]``.
        teacher_bias: of the teacher's output layer, ``[V]``.
        student_scale: what the student's logits are multiplied by, the bias included.
        teacher_scale: likewise.
        student_softcap: c > 0 of logits that are ``c tanh(z / c)``, after the scale; None: they are not capped.
        teacher_softcap: likewise.
        labels: int64 classes, the shape of ``student`` without its last dimension, for the cross-entropy, which is
            taken at temperature 1 from the same logits. They are not shifted here.
        alpha: share of the KL, in [0, 1]; anything but 1 needs labels.
        temperature: T > 0.
        divergence: ``"forward"``, ``"reverse"`` or ``"jsd"``, see `softmax_kl`.
        beta: weight of the teacher in the mixture of ``"jsd"``, in [0, 1]; at the ends it is forward and reverse KL.
        tail: of the teacher's classes that :class:`SparseTargets` do not list, see `topk_kl`.
        vocabulary: the first so many classes of both sides count, where they are padded to different sizes.
        mask: bool per row; rows where it is False count for nothing, are never read and cost no product.
        weight: float per row, multiplies both terms of it.
        ignore_index: label of rows that have none.
        mask_by_labels: whether rows without a label count for nothing; else they take part in the KL.
        reduction: ``"none"`` (one loss per row), ``"sum"``, or ``"mean"``, each term over its own rows that count.
        num_items: a number, or a tensor without dimensions, that ``"mean"`` divides by instead: the tokens that count
            in all micro-batches of a step.
        scale_by_t2: multiply the KL by T^2, so that gradients keep their size when T changes.
        backend: ``"auto"``, or the name of one that has to run it.

    Returns:
        A number, or with ``"none"`` the rows' losses (the shape of ``student`` without its last dimension), in float32
        (float64 if an operand is). 0 with zero gradients when no row counts.

    Raises:
        ValueError: shapes, devices or values that do not fit; the message names the argument.
        TypeError: tensors of another type.
        BackendError: the named backend cannot run here.

    Example:
        >>> import torch, kdx
        >>> hidden, head = torch.eye(2, 3, requires_grad=True), torch.arange(12.0).reshape(4, 3)
        >>> loss = kdx.ops.linear_kl(hidden, head, 2 * hidden.detach(), head, temperature=6.0)
        >>> loss.backward()
        >>> round(loss.item(), 4), list(hidden.grad.shape)
        (3.3651, [2, 3])

    """
    _check_floating("student", student)
    _check_floating("student_weight", student_weight)
    shape = student.shape[:-1]
    s = _side("student", student, student_weight, student_bias, student_scale, student_softcap)
    code, beta = divergence_of(divergence, beta)
    mode, taught = DENSE, None
    if isinstance(teacher, SparseTargets):
        classes = _vocabulary(vocabulary, student_weight.shape[0], None)
        _without_a_head("teacher", teacher_weight, teacher_bias, teacher_scale, teacher_softcap)
        like = student.new_empty(0, dtype=accumulator(student, student_weight))
        ids, known, mode = sparse_call(teacher, shape, classes, tail, code, temperature, like)
        t, taught = Side(known, None, None, 1.0, 0.0, ids), (ids >= 0).any(1).reshape(shape)
    else:
        _check_floating("teacher", teacher)
        t = _side("teacher", teacher, teacher_weight, teacher_bias, teacher_scale, teacher_softcap)
        if teacher.shape[:-1] != shape:
            raise ValueError(
                f"teacher: expected one row for each of the student's {list(shape)}, got {list(teacher.shape[:-1])}"
            )
        _check_apart(t, student.device)
        other = teacher.shape[-1] if teacher_weight is None else teacher_weight.shape[0]
        classes = _vocabulary(vocabulary, student_weight.shape[0], other)
    check_terms(temperature, alpha, reduction, num_items, labels)
    rows = coefficients_of(
        *(shape, accumulator(student, student_weight), student.device, classes),
        labels=labels,
        mask=mask,
        weight=weight,
        ignore_index=ignore_index,
        mask_by_labels=mask_by_labels,
        mean=reduction == "mean",
        num_items=num_items,
        alpha=alpha,
        taught=taught,
    )
    options = Options(
        *(classes, mode, float(temperature), code, beta),
        *(alpha * (float(temperature) ** 2 if scale_by_t2 else 1.0), 1.0 - alpha, reduction != "none", backend),
    )
    s, t = (_autocast(side) for side in (s, t))
    loss = loss_of(s, t, rows, options)
    return loss if options.reduce else loss.reshape(shape)


def _check_floating(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if not x.dtype.is_floating_point:
        raise TypeError(f"{name}: expected floating-point numbers, got {x.dtype}")
    if x.dim() == 0:
        raise ValueError(f"{name}: expected a last dimension, got a number")


def _without_a_head(name: str, weight: Tensor | None, bias: Tensor | None, scale: float, softcap: float | None) -> None:
    given = {"weight": weight, "bias": bias, "softcap": softcap, "scale": None if scale == 1 else scale}
    for what, value in given.items():
        if value is not None:
            raise ValueError(f"{name}_{what}: belongs to a head, and {name} holds no hidden states that go through one")


def _side(
    name: str, x: Tensor, weight: Tensor | None, bias: Tensor | None, scale: float, softcap: float | None
) -> Side:
    """One side, its rows along one dimension."""
    if weight is None:
        _without_a_head(name, None, bias, scale, softcap)
        return Side(x.reshape(-1, x.shape[-1]), None, None, 1.0, 0.0)
    _check_floating(f"{name}_weight", weight)
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(
            f"{name}_weight: expected [V, {x.shape[-1]}] for hidden states of {x.shape[-1]} numbers, as the weight of "
            f"nn.Linear is, got {list(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{name}_bias: expected [{weight.shape[0]}], one per class, got {list(bias.shape)}")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(
            f"{name}_softcap: expected a number above 0, or None where logits are not capped; got {softcap}"
        )
    if not math.isfinite(scale):
        raise ValueError(f"{name}_scale: expected a finite number, got {scale}")
    for part in (weight, bias):
        if part is not None and part.device != x.device:
            raise ValueError(f"{name}: is on {x.device}, its head on {part.device}; move one of them")
    return Side(x.reshape(-1, x.shape[-1]), weight, bias, float(scale), float(softcap or 0.0))


def _check_apart(teacher: Side, device: torch.device) -> None:
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in teacher[:3]):
        raise ValueError("teacher: gets no gradient here; pass its tensors detached, or run it under torch.no_grad()")
    if teacher.hidden.device != device:
        raise ValueError(f"teacher: is on {teacher.hidden.device}, the student on {device}; move one of them")


def _vocabulary(vocabulary: int | None, own: int, other: int | None) -> int:
    """How many classes are compared, of those of the student and the teacher (None: it has whatever it lists)."""
    least = own if other is None else min(own, other)
    if vocabulary is None:
        if other not in (own, None):
            raise ValueError(
                f"teacher: has {other} classes, the student {own}; where the first classes are the same and the others "
                "padding, give their number as vocabulary=; tokenizers that differ share no classes"
            )
        return own
    if isinstance(vocabulary, bool) or not isinstance(vocabulary, int) or not 0 < vocabulary <= least:
        raise ValueError(
            f"vocabulary: expected a number of classes that both sides have, 1 to {least} (the student has {own}"
            f"{'' if other is None else f', the teacher {other}'}), got {vocabulary!r}"
        )
    return vocabulary


def _autocast(side: Side) -> Side:
    """The operands in the dtype that torch.autocast multiplies in, where it is on; the logits stay float32."""
    device = side.hidden.device.type
    if side.weight is None or not torch.is_autocast_enabled(device):
        return side
    dtype = torch.get_autocast_dtype(device)
    hidden, weight = (x.to(dtype) if x.dtype == torch.float32 else x for x in (side.hidden, side.weight))
    return side._replace(hidden=hidden, weight=weight)
