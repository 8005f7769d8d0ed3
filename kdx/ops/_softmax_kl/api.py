"""softmax_kl and kd_loss: what a user calls. Arguments are checked here, once; the mathematics is in README.md."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from kdx.errors import nearest
from kdx.ops._dtypes import accumulator
from kdx.ops._num_items import check_num_items
from kdx.ops._softmax_kl import reference
from kdx.ops._softmax_kl.autograd import BY_ENTRIES, BY_NOTHING, BY_ROWS, Options, Rows, loss_of
from kdx.ops._softmax_kl.terms import terms_of
from kdx.ops._term_weights import check_weights

__all__ = ["check_scale", "divergence_of", "kd_loss", "softmax_kl"]

_DIVERGENCES = {"forward": reference.FORWARD, "reverse": reference.REVERSE, "jsd": reference.JSD}
_DIVIDE = {"none": BY_NOTHING, "sum": BY_NOTHING, "mean": BY_ENTRIES, "batchmean": BY_ROWS}


def softmax_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    divergence: str = "forward",
    beta: float = 0.5,
    skew: float = 0.0,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    num_items: float | Tensor | None = None,
    scale_by_t2: bool = True,
    scale: float | Tensor = 1.0,
    grad_dtype: torch.dtype | None = None,
    once_differentiable: bool = False,
    reduction: str = "batchmean",
    dim: int = -1,
    backend: str = "auto",
) -> Tensor:
    """Divergence between the tempered softmaxes of two tensors of logits, times T^2.

    With ``q = softmax(student / T)`` and ``p = softmax(teacher / T)`` over ``dim``: ``"forward"`` is KL(p || q), the
    loss of Hinton et al. 2015 (https://arxiv.org/abs/1503.02531); ``"reverse"`` is KL(q || p); ``"jsd"`` is
    ``beta KL(p || m) + (1 - beta) KL(q || m)`` with ``m = beta p + (1 - beta) q``. Gradients reach both tensors where
    they ask for one; ``weight`` and ``mask`` get none. Half-precision logits are accumulated in float32.

    Args:
        student: logits ``[..., C, ...]``, any strides, float32, float64, bfloat16 or float16.
        teacher: logits of the same shape.
        temperature: T > 0.
        divergence: ``"forward"``, ``"reverse"`` or ``"jsd"``.
        beta: weight of the teacher in the mixture of ``"jsd"``, 0 <= beta <= 1. At the ends, where the JSD itself
            would be 0, it is the KL that the JSD divided by ``beta (1 - beta)`` tends to: 0 is forward, 1 reverse KL.
        skew: s in [0, 1) of the skewed KLs of DistiLLM (Ko et al. 2024, https://arxiv.org/abs/2402.03898): forward is
            then KL(p || s p + (1 - s) q), reverse KL(q || s q + (1 - s) p), which stay finite where a side has no
            probability; 0.1 there.
        weight: float per row (the shape of ``student`` without ``dim``), multiplies the row's loss.
        mask: bool per row; rows where it is False count for nothing and are not looked at.
        num_items: a number, or a tensor without dimensions, that means divide by instead of the rows that count: those
            of all micro-batches of a step, or of all ranks.
        scale_by_t2: multiply by T^2, so that gradients keep their size when T changes.
        scale: a number that loss and gradient are multiplied by, as the weight of a term in a larger loss, or a tensor
            without dimensions, whose value is not read and which gets no gradient; it costs nothing, where a
            multiplication of the loss costs the backward pass one of the gradient.
        grad_dtype: that the gradients are kept in from the forward to the backward pass, bfloat16 or float16 for
            float32 logits: half of their memory. Autograd itself widens what it hands on to a float32 tensor, except to
            a leaf whose ``grad_dtype`` allows the narrow one. None: the dtype of the logits.
        once_differentiable: keep nothing but the gradient from the forward to the backward pass, where otherwise both
            logits stay as well; a second derivative (``create_graph=True``) is then an error. float16 logits are kept
            in their gradient's place, which is made in the backward pass, behind a loss scale.
        reduction: ``"none"`` (one loss per row), ``"sum"``, ``"batchmean"`` (sum / rows that count) or ``"mean"``
            (sum / rows that count / C), the last two as `torch.nn.functional.kl_div` has them for ``[N, C]``.
        dim: the dimension of the classes.
        backend: ``"auto"``, or the name of one that has to run it.

    Returns:
        A number, or with ``"none"`` the rows' losses (the shape of ``student`` without ``dim``), in float32 (float64
        for float64 logits). 0 with zero gradients when no row counts. A logit of -inf is a class of probability 0;
        where the student has -inf and the teacher does not, forward KL is inf with a finite gradient. A row of nothing
        but -inf, or with an inf or NaN, gives NaN.

    Raises:
        ValueError: shapes, devices or values that do not fit; the message names the argument.
        TypeError: logits that are not floating point, a mask that is not bool.
        BackendError: the named backend cannot run here.

    Example:
        >>> import torch, kdx
        >>> student = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
        >>> teacher = torch.tensor([[3.0, 2.0, 1.0]])
        >>> loss = kdx.ops.softmax_kl(student, teacher, temperature=2.0)
        >>> loss.backward()
        >>> round(loss.item(), 4), [round(g, 4) + 0.0 for g in student.grad[0].tolist()]
        (1.2806, [-0.6403, 0.0, 0.6403])

    """
    student, teacher, dim = _logits(student, teacher, dim)
    _check_choices(temperature, reduction)
    code, beta = divergence_of(divergence, beta, skew)
    check_num_items(num_items, reduction)
    if grad_dtype is not None and not grad_dtype.is_floating_point:
        raise TypeError(f"grad_dtype: expected a floating-point dtype, got {grad_dtype}")
    kl_rows, divide = _kl_rows(student, dim, weight, mask, _DIVIDE[reduction], num_items)
    if isinstance(scale, Tensor):
        kl_rows, scale = _times(kl_rows, scale, student, dim), 1.0
    check_scale(scale)
    scale = scale * float(temperature) ** 2 if scale_by_t2 else float(scale)
    options = Options(float(temperature), code, beta, scale, 0.0, divide, reduction != "none", backend)
    loss = loss_of(student, teacher, Rows(kl_rows, None, None), options, dim, grad_dtype, once=once_differentiable)
    return loss if options.reduce else loss.reshape(_row_shape(student, dim))


# One result or two; the options are those of the implementation.
@overload
def kd_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, *, return_terms: Literal[False] = False, **options: Any
) -> Tensor: ...
@overload
def kd_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, *, return_terms: Literal[True], **options: Any
) -> tuple[Tensor, Tensor]: ...
def kd_loss(  # type: ignore[misc]
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    temperature: float = 4.0,
    alpha: float | None = None,
    divergence: str = "forward",
    beta: float = 0.5,
    skew: float = 0.0,
    ignore_index: int = -100,
    mask: Tensor | None = None,
    scale: float = 1.0,
    once_differentiable: bool = False,
    reduction: str = "batchmean",
    return_terms: bool = False,
    weights: tuple[float | Tensor, float | Tensor] = (1.0, 1.0),
    dim: int = -1,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """The distillation loss ``alpha T^2 KL(teacher || student) + (1 - alpha) CE(student, labels)`` in one op.

    The KL is taken at temperature T, the cross-entropy at 1 (Hinton et al. 2015, https://arxiv.org/abs/1503.02531).
    Each term is averaged over its own rows: the KL over the rows of ``mask``, the cross-entropy over those of them that
    have a label. Gradients reach student and teacher where they ask for one.

    Args:
        student: logits ``[..., C, ...]``, any strides, float32, float64, bfloat16 or float16.
        teacher: logits of the same shape.
        labels: int64 class indices, the shape of ``student`` without ``dim``.
        temperature: T > 0.
        alpha: share of the KL, in [0, 1]; None: 0.9.
        divergence: ``"forward"``, ``"reverse"`` or ``"jsd"`` in the KL's place, see `softmax_kl`.
        beta: likewise.
        skew: likewise.
        ignore_index: label of rows that have none; they take part in the KL only.
        mask: bool per row; rows where it is False count for nothing and are not looked at.
        scale: a number, see `softmax_kl`.
        once_differentiable: likewise.
        reduction: ``"none"`` (one loss per row), ``"sum"``, or ``"batchmean"`` (here ``"mean"`` means the same).
        return_terms: give the two terms apart, of one pass over the logits, for a caller who reports or weighs them.
            Their gradient is ready after the forward pass where both have the same upstream gradient, as in their sum;
            else it is made again, for which both logits are kept. ``alpha``, ``scale`` and ``once_differentiable`` are
            left out, ``reduction`` is a sum or a mean.
        weights: of the two terms with ``return_terms``, numbers or tensors without dimensions; the terms come
            multiplied by them. So ``kl + ce`` is the loss of a step, and its gradient is ready.
        dim: the dimension of the classes.
        backend: ``"auto"``, or the name of one that has to run it.

    Returns:
        A number, or with ``"none"`` the rows' losses, in float32 (float64 for float64 logits); see `softmax_kl`. With
        ``return_terms`` two numbers, ``(w_kl T^2 KL, w_ce CE)``, each over its own rows.

    Raises:
        ValueError: shapes, devices or values that do not fit, or a label that is no class (on a GPU and in a compiled
            graph such a row gives NaN instead, because reading the labels would stop the stream).
        TypeError: logits that are not floating point, labels that are not int64, a mask that is not bool.
        BackendError: the named backend cannot run here.

    Example:
        >>> import torch, kdx
        >>> student, teacher = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[3.0, 2.0, 1.0]])
        >>> round(kdx.ops.kd_loss(student, teacher, torch.tensor([2]), temperature=2.0, alpha=0.9).item(), 4)
        1.1933

    """
    student, teacher, dim = _logits(student, teacher, dim)
    _check_choices(temperature, reduction)
    code, beta = divergence_of(divergence, beta, skew)
    if return_terms:
        _check_terms(alpha, weights, reduction, scale, once=once_differentiable)
    share = 0.9 if alpha is None else alpha
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"alpha: expected a share in [0, 1], got {alpha}")
    _check_labels(student, dim, labels, ignore_index, mask)
    average = reduction in ("mean", "batchmean")
    kl_rows, divide = _kl_rows(student, dim, None, mask, BY_ROWS if average else BY_NOTHING)
    counts = labels.ne(ignore_index)
    if mask is not None:
        counts = counts & mask
    ce_rows = counts.reshape(-1).to(accumulator(student))
    if average:
        ce_rows = ce_rows / ce_rows.sum().clamp(min=1)
    check_scale(scale)
    temperature, of_kl, of_ce = float(temperature), scale * share, scale * (1.0 - share)
    if return_terms:
        kl_rows, of_kl = _weighted(kl_rows, weights[0], ce_rows)
        weighted, of_ce = _weighted(ce_rows, weights[1], ce_rows)
        ce_rows = ce_rows if weighted is None else weighted
    options = Options(temperature, code, beta, of_kl * temperature**2, of_ce, divide, reduction != "none", backend)
    rows = Rows(kl_rows, labels.reshape(-1).contiguous(), ce_rows)
    if return_terms:
        kl, ce = terms_of(student, teacher, rows, options, dim).unbind()
        return kl, ce
    loss = loss_of(student, teacher, rows, options, dim, once=once_differentiable)
    return loss if options.reduce else loss.reshape(_row_shape(student, dim))


def _weighted(rows: Tensor | None, weight: float | Tensor, like: Tensor) -> tuple[Tensor | None, float]:
    """Row coefficients (None: all 1) and the number that they are still to be multiplied by."""
    if not isinstance(weight, Tensor):
        return rows, float(weight)
    by = weight.detach().reshape(()).to(like)
    return by.expand_as(like).contiguous() if rows is None else rows * by, 1.0


def _check_terms(
    alpha: float | None,
    weights: tuple[float | Tensor, float | Tensor],
    reduction: str,
    scale: float,
    *,
    once: bool,
) -> None:
    if alpha is not None:
        raise ValueError(f"alpha: mixes the terms into one loss, got {alpha:g}; of two terms weights=(w_kl, w_ce) are")
    if scale != 1.0 or once:
        raise ValueError("scale, once_differentiable: are of one loss; of two terms weights=(w_kl, w_ce) are")
    check_weights(weights, reduction)


def _row_shape(student: Tensor, dim: int) -> torch.Size:
    return student.shape[:dim] + student.shape[dim + 1 :]


def _logits(student: Tensor, teacher: Tensor, dim: int) -> tuple[Tensor, Tensor, int]:
    """The two tensors in one dtype, and ``dim`` as a number that is not negative."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher: expected the student's shape {tuple(student.shape)}, got {tuple(teacher.shape)}; "
            "both need the same rows and classes"
        )
    for name, x in (("student", student), ("teacher", teacher)):
        if not x.dtype.is_floating_point:
            raise TypeError(f"{name}: expected floating-point logits, got {x.dtype}")
    if student.device != teacher.device:
        raise ValueError(f"teacher: is on {teacher.device}, the student on {student.device}; move one of them")
    n = student.dim()
    if not -n <= dim < n:
        raise ValueError(f"dim: expected a dimension of {tuple(student.shape)}, got {dim}")
    dim %= n
    if student.shape[dim] == 0:
        raise ValueError(f"dim: dimension {dim} of {tuple(student.shape)} has no classes")
    if student.dtype != teacher.dtype:
        common = torch.promote_types(student.dtype, teacher.dtype)
        student, teacher = student.to(common), teacher.to(common)
    return student, teacher, dim


def _check_choices(temperature: float, reduction: str) -> None:
    if not temperature > 0 or temperature == float("inf"):
        raise ValueError(f"temperature: expected a finite number above 0, got {temperature}")
    if reduction not in _DIVIDE:
        raise ValueError(f"reduction: there is no {reduction!r}; {nearest(reduction, _DIVIDE)}")


def _times(rows: Tensor | None, scale: Tensor, student: Tensor, dim: int) -> Tensor:
    """Row coefficients multiplied by a scale that is a tensor, whose value is not read."""
    if scale.numel() != 1:
        raise ValueError(f"scale: expected one number, got a tensor {list(scale.shape)}")
    if scale.requires_grad and torch.is_grad_enabled():
        raise ValueError("scale: gets no gradient; multiply the loss by it instead")
    by = scale.reshape(()).to(student.device, accumulator(student))
    return by.expand(_row_shape(student, dim).numel()).contiguous() if rows is None else rows * by


def check_scale(scale: float) -> None:
    """Checks what a loss is multiplied by.

    Raises:
        ValueError: it is not finite.
    """
    if not -float("inf") < scale < float("inf"):  # math.isfinite would break a compiled graph
        raise ValueError(f"scale: expected a finite number, got {scale}")


def divergence_of(divergence: str, beta: float, skew: float = 0.0) -> tuple[int, float]:
    """The number of a divergence and the teacher's weight in its mixture; the JSD at 0 is forward KL, at 1 reverse KL.

    Raises:
        ValueError: there is none of this name, ``beta`` is not in [0, 1], or ``skew`` not in [0, 1) or of a JSD.
    """
    if divergence not in _DIVERGENCES:
        raise ValueError(f"divergence: there is no {divergence!r}; {nearest(divergence, _DIVERGENCES)}")
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"beta: expected a number in [0, 1], got {beta}")
    if not 0.0 <= skew < 1.0:
        raise ValueError(f"skew: expected a number in [0, 1), got {skew}")
    if skew and divergence == "jsd":
        raise ValueError("skew: is of 'forward' and 'reverse' KL; of 'jsd', beta says how the sides are mixed")
    if skew:
        forward = divergence == "forward"
        return (reference.SKEW_FORWARD, float(skew)) if forward else (reference.SKEW_REVERSE, 1.0 - skew)
    if divergence == "jsd" and beta in (0.0, 1.0):
        return (reference.FORWARD if beta == 0.0 else reference.REVERSE), 0.5
    return _DIVERGENCES[divergence], float(beta)


def _check_row_tensor(name: str, x: Tensor, student: Tensor, dim: int) -> None:
    shape = _row_shape(student, dim)
    if x.shape != shape:
        raise ValueError(
            f"{name}: expected one per row, shape {tuple(shape)} for logits {tuple(student.shape)} with dim={dim}, "
            f"got {tuple(x.shape)}"
        )
    if x.device != student.device:
        raise ValueError(f"{name}: is on {x.device}, the student on {student.device}; move it")


def _check_labels(student: Tensor, dim: int, labels: Tensor, ignore_index: int, mask: Tensor | None) -> None:
    if labels.dtype != torch.int64:
        raise TypeError(f"labels: expected int64 class indices, got {labels.dtype}")
    _check_row_tensor("labels", labels, student, dim)
    if labels.device.type != "cpu" or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return
    if labels.numel() == 0:
        return
    classes = student.shape[dim]
    low, high = torch.aminmax(labels)
    if low.item() >= 0 and high.item() < classes:
        return
    counts = labels != ignore_index if mask is None else (labels != ignore_index) & mask
    wrong = labels[counts & ((labels < 0) | (labels >= classes))]
    if wrong.numel():
        raise ValueError(
            f"labels: expected classes in [0, {classes}) or ignore_index={ignore_index}, got {int(wrong[0])}"
        )


def _kl_rows(
    student: Tensor,
    dim: int,
    weight: Tensor | None,
    mask: Tensor | None,
    divide: int,
    num_items: float | Tensor | None = None,
) -> tuple[Tensor | None, int]:
    """Row coefficients ``[R]`` of the KL (None: all 1) and what is left to divide by."""
    if weight is None and mask is None and num_items is None:
        return None, divide
    acc = accumulator(student)
    rows = None
    if num_items is not None and weight is None and mask is None:
        rows = torch.ones(_row_shape(student, dim).numel(), dtype=acc, device=student.device)
    if weight is not None:
        if not weight.dtype.is_floating_point:
            raise TypeError(f"weight: expected floating-point numbers, got {weight.dtype}")
        if weight.requires_grad and torch.is_grad_enabled():
            raise ValueError("weight: gets no gradient; pass weight.detach()")
        _check_row_tensor("weight", weight, student, dim)
        rows = weight.reshape(-1).to(acc)
    count: float | Tensor | None = num_items.reshape(()).to(acc) if isinstance(num_items, Tensor) else num_items
    if mask is None:
        assert rows is not None
        if count is None:
            return rows.contiguous(), divide
        return _divided(rows, count, student.shape[dim], divide), BY_NOTHING
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: expected bool, got {mask.dtype}; compare it with 0 first")
    _check_row_tensor("mask", mask, student, dim)
    flat = mask.reshape(-1)
    rows = flat.to(acc) if rows is None else torch.where(flat, rows, 0.0)
    clamped = count is None
    count = flat.sum().clamp(min=1) if count is None else count
    return _divided(rows, count, student.shape[dim], divide, clamped=clamped), BY_NOTHING


def _divided(rows: Tensor, count: float | Tensor, classes: int, divide: int, *, clamped: bool = False) -> Tensor:
    if divide != BY_NOTHING:
        each = rows / count
        # of num_items=tensor(0.) nothing counts, and what does not count stays 0
        rows = torch.where(rows == 0, 0.0, each) if isinstance(count, Tensor) and not clamped else each
    if divide == BY_ENTRIES:
        rows = rows / classes
    return rows.contiguous()
