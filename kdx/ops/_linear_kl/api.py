"""linear_kl: what a user calls. Arguments are checked here, once; the mathematics is in README.md."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdx.errors import nearest
from kdx.ops._dtypes import accumulator
from kdx.ops._linear_kl.autograd import loss_of
from kdx.ops._linear_kl.call import Options, Rows, Side
from kdx.ops._softmax_kl.api import divergence_of

__all__ = ["linear_kl"]

_REDUCTIONS = ("none", "sum", "mean")


def linear_kl(
    student: Tensor,
    student_weight: Tensor,
    teacher: Tensor,
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
        teacher: hidden states ``[..., H_t]`` with ``teacher_weight``, else logits ``[..., V]``.
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
        (5.1124, [2, 3])

    """
    for name, x in (("student", student), ("student_weight", student_weight), ("teacher", teacher)):
        _check_floating(name, x)
    shape = student.shape[:-1]
    s = _side("student", student, student_weight, student_bias, student_scale, student_softcap)
    t = _side("teacher", teacher, teacher_weight, teacher_bias, teacher_scale, teacher_softcap)
    if teacher.shape[:-1] != shape:
        raise ValueError(
            f"teacher: expected one row for each of the student's {list(shape)}, got {list(teacher.shape[:-1])}"
        )
    _check_apart(t)
    classes = _classes(s, t, teacher_weight is not None, vocabulary)
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction: there is no {reduction!r}; {nearest(reduction, _REDUCTIONS)}")
    code, beta = divergence_of(divergence, beta)
    if not temperature > 0 or math.isinf(temperature):
        raise ValueError(f"temperature: expected a finite number above 0, got {temperature}")
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha: expected a share in [0, 1], got {alpha}")
    if labels is None and alpha != 1.0:
        raise ValueError(f"labels: are needed for the cross-entropy, whose share is 1 - alpha = {1.0 - alpha:g}")
    rows = _rows(s, shape, classes, labels, mask, weight, ignore_index, mask_by_labels, reduction, num_items, alpha)
    options = Options(
        *(classes, float(temperature), code, beta),
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


def _side(
    name: str, x: Tensor, weight: Tensor | None, bias: Tensor | None, scale: float, softcap: float | None
) -> Side:
    """One side, its rows along one dimension."""
    if weight is None:
        for given, what in ((bias, "bias"), (softcap, "softcap"), (None if scale == 1 else scale, "scale")):
            if given is not None:
                raise ValueError(f"{name}_{what}: belongs to a head; without {name}_weight, {name} holds logits")
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


def _check_apart(teacher: Side) -> None:
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in teacher[:3]):
        raise ValueError("teacher: gets no gradient here; pass its tensors detached, or run it under torch.no_grad()")


def _classes(student: Side, teacher: Side, heads: bool, vocabulary: int | None) -> int:
    """How many classes are compared."""
    assert student.weight is not None
    own = student.weight.shape[0]
    other = teacher.hidden.shape[1] if teacher.weight is None else teacher.weight.shape[0]
    if teacher.hidden.device != student.hidden.device:
        raise ValueError(
            f"teacher: is on {teacher.hidden.device}, the student on {student.hidden.device}; move one of them"
        )
    if vocabulary is None:
        if own != other:
            what = "teacher_weight" if heads else "teacher (logits)"
            raise ValueError(
                f"{what}: has {other} classes, the student {own}; where the first classes are the same and the rest is "
                "padding, give their number as vocabulary=; tokenizers that differ share no classes"
            )
        return own
    if isinstance(vocabulary, bool) or not isinstance(vocabulary, int) or not 0 < vocabulary <= min(own, other):
        raise ValueError(
            f"vocabulary: expected a number of classes that both sides have, 1 to {min(own, other)} (the student has "
            f"{own}, the teacher {other}), got {vocabulary!r}"
        )
    return vocabulary


def _rows(
    student: Side,
    shape: torch.Size,
    classes: int,
    labels: Tensor | None,
    mask: Tensor | None,
    weight: Tensor | None,
    ignore_index: int,
    mask_by_labels: bool,
    reduction: str,
    num_items: float | Tensor | None,
    alpha: float,
) -> Rows:
    """Coefficients of the two terms, with what the mean divides by."""
    assert student.weight is not None
    acc, device = accumulator(student.hidden, student.weight), student.hidden.device
    for name, x, dtypes in (
        ("labels", labels, (torch.int64,)),
        ("mask", mask, (torch.bool,)),
        ("weight", weight, None),
    ):
        if x is None:
            continue
        if dtypes and x.dtype not in dtypes:
            raise TypeError(f"{name}: expected {str(dtypes[0]).removeprefix('torch.')}, got {x.dtype}")
        if x.shape != shape or x.device != device:
            raise ValueError(
                f"{name}: expected one per row, {list(shape)} on {device}, got {list(x.shape)} on {x.device}"
            )
    if weight is not None:
        _check_floating("weight", weight)
        if weight.requires_grad and torch.is_grad_enabled():
            raise ValueError("weight: gets no gradient; pass weight.detach()")
    counts = torch.ones(shape, dtype=torch.bool, device=device) if mask is None else mask
    labelled = None
    if labels is not None:
        labelled = counts & (labels != ignore_index)
        _check_labels(labels, labelled, classes, ignore_index)
        counts = labelled if mask_by_labels else counts
    kl = _coefficients(counts, weight, acc, reduction, num_items)
    if labels is None or labelled is None or alpha == 1.0:
        return Rows(kl, None, None)
    if alpha == 0.0:
        kl = torch.zeros_like(kl)
    return Rows(kl, labels.reshape(-1), _coefficients(labelled, weight, acc, reduction, num_items))


def _coefficients(
    counts: Tensor, weight: Tensor | None, acc: torch.dtype, reduction: str, num_items: float | Tensor | None
) -> Tensor:
    flat = counts.reshape(-1)
    rows = flat.to(acc) if weight is None else torch.where(flat, weight.reshape(-1).to(acc), 0.0)
    if num_items is not None and reduction != "mean":
        raise ValueError(f"num_items: is what the mean divides by; reduction={reduction!r} divides by nothing")
    if reduction != "mean":
        return rows
    if num_items is None:
        return rows / flat.sum().clamp(min=1)
    if isinstance(num_items, Tensor):
        if num_items.numel() != 1:
            raise ValueError(f"num_items: expected one number, got a tensor {list(num_items.shape)}")
        return rows / num_items.reshape(()).to(rows)
    if not num_items > 0:
        raise ValueError(f"num_items: expected a number above 0, got {num_items}")
    return rows / num_items


def _check_labels(labels: Tensor, counts: Tensor, classes: int, ignore_index: int) -> None:
    if labels.device.type != "cpu" or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return
    wrong = labels[counts & ((labels < 0) | (labels >= classes))]
    if wrong.numel():
        raise ValueError(
            f"labels: expected classes in [0, {classes}) or ignore_index={ignore_index}, got {int(wrong[0])}"
        )


def _autocast(side: Side) -> Side:
    """The operands in the dtype that torch.autocast multiplies in, where it is on; the logits stay float32."""
    device = side.hidden.device.type
    if side.weight is None or not torch.is_autocast_enabled(device):
        return side
    dtype = torch.get_autocast_dtype(device)
    hidden, weight = (x.to(dtype) if x.dtype == torch.float32 else x for x in (side.hidden, side.weight))
    return side._replace(hidden=hidden, weight=weight)
