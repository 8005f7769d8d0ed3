"""linear_kl: what a user calls. Arguments are checked here, once; the mathematics is in README.md."""

from __future__ import annotations

from typing import Any, Literal, overload

from torch import Tensor

from kdx.ops._dtypes import accumulator
from kdx.ops._linear_kl.autograd import loss_of
from kdx.ops._linear_kl.call import COMMON, DENSE, Options, Side
from kdx.ops._linear_kl.common import common_of
from kdx.ops._linear_kl.row_numbers import check_apart_terms, check_terms, coefficients_of
from kdx.ops._linear_kl.shards import shard_of, sharded_loss_of
from kdx.ops._linear_kl.sides import check_apart, check_floating, in_autocast, side_of, vocabulary_of, without_a_head
from kdx.ops._linear_kl.stats import Stats, stats_of
from kdx.ops._softmax_kl.api import divergence_of
from kdx.ops._topk_kl.api import sparse_call
from kdx.ops._topk_kl.targets import SparseTargets

__all__ = ["linear_kl"]


Weights = tuple[float | Tensor, float | Tensor]


# One result or two; the options are those of the implementation.
@overload
def linear_kl(
    *tensors: Tensor | SparseTargets | None,
    return_terms: Literal[False] = False,
    return_stats: Literal[False] = False,
    **options: Any,
) -> Tensor: ...
@overload
def linear_kl(
    *tensors: Tensor | SparseTargets | None,
    return_terms: Literal[True],
    return_stats: Literal[False] = False,
    **options: Any,
) -> tuple[Tensor, Tensor]: ...
@overload
def linear_kl(
    *tensors: Tensor | SparseTargets | None,
    return_terms: Literal[False] = False,
    return_stats: Literal[True],
    **options: Any,
) -> tuple[Tensor, Stats]: ...
@overload
def linear_kl(
    *tensors: Tensor | SparseTargets | None, return_terms: Literal[True], return_stats: Literal[True], **options: Any
) -> tuple[Tensor, Tensor, Stats]: ...
def linear_kl(  # type: ignore[misc]
    student: Tensor,
    student_weight: Tensor,
    teacher: Tensor | SparseTargets | None,
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
    skew: float = 0.0,
    tail: str = "bucket",
    vocabulary: int | tuple[Tensor, Tensor] | None = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    mask_by_labels: bool = True,
    reduction: str = "mean",
    num_items: float | Tensor | None = None,
    scale_by_t2: bool = True,
    return_terms: bool = False,
    weights: Weights = (1.0, 1.0),
    return_stats: bool = False,
    group: Any = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor] | tuple[Tensor, Stats] | tuple[Tensor, Tensor, Stats]:
    """The distillation loss of a language model from hidden states, whose logits are never held whole.

    ``alpha T^2 KL + (1 - alpha) CE(labels)`` of the logits ``student @ student_weight.T``, as `softmax_kl` and
    `kd_loss` have it (Hinton et al. 2015, https://arxiv.org/abs/1503.02531), in chunks of rows: beside the gradients
    it takes the memory of one chunk of logits. Logits are float32, also of operands in half precision. Gradients reach
    the student's hidden states, weight and bias where they ask for one; the teacher's side gets none.

    Args:
        student: hidden states ``[..., H_s]``, float32, float64, bfloat16 or float16.
        student_weight: of its output layer, ``[V, H_s]``.
        teacher: hidden states ``[..., H_t]`` with ``teacher_weight``, else logits ``[..., V]``, or
            :class:`SparseTargets`, a few classes of each row. None where ``alpha`` is 0.
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
        skew: s in [0, 1) of the skewed forward and reverse KL, see `softmax_kl`.
        tail: of the teacher's classes that :class:`SparseTargets` do not list, see `topk_kl`.
        vocabulary: the first so many classes of both sides count, where they are padded to different sizes. Or two
            int64 lists ``(student_ids, teacher_ids)`` of the classes that both sides have, as each numbers them: those
            are compared one by one, all others of a side count as one class. Labels are the student's.
        mask: bool per row; rows where it is False count for nothing, are never read and cost no product.
        weight: float per row, multiplies both terms of it.
        ignore_index: label of rows that have none.
        mask_by_labels: whether rows without a label count for nothing; else they take part in the KL.
        reduction: ``"none"`` (one loss per row), ``"sum"``, or ``"mean"``, each term over its own rows that count.
        num_items: a number, or a tensor without dimensions, that ``"mean"`` divides by instead: the tokens that count
            in all micro-batches of a step.
        scale_by_t2: multiply the KL by T^2, so that gradients keep their size when T changes.
        return_terms: give the two terms apart, of one product of the head, for a caller who reports or weighs them.
            Gradients are ready after the forward pass where both terms have the same upstream gradient, as in their
            sum; else they are computed again. ``alpha`` is left at 1, ``reduction`` is a sum or a mean.
        weights: of the two terms with ``return_terms``, numbers or tensors without dimensions; the terms come
            multiplied by them. So ``kl + ce`` is the loss of a step, and its gradient is ready.
        return_stats: give :class:`Stats` too, detached numbers to log; of a sum or a mean.
        group: a process group of `torch.distributed`, each of whose processes holds a block of the rows of both heads
            (of the biases, and of the columns of a teacher's logits), in the order of the ranks and cut at the same
            classes. Hidden states, labels and masks are the same everywhere; ``vocabulary`` and labels count the
            classes of all blocks. Every process gets the loss, the gradient of its block and the whole gradient of the
            hidden states. It runs in torch's operations, whatever the backend, and is differentiated once.
        backend: ``"auto"``, or the name of one that has to run it.

    Returns:
        A number, or with ``"none"`` the rows' losses (the shape of ``student`` without its last dimension), in float32
        (float64 if an operand is). 0 with zero gradients when no row counts. With ``return_terms``
        ``(w_kl T^2 KL, w_ce CE)``, each the mean or sum over its own rows. With ``return_stats`` these last.

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
    check_floating("student", student)
    check_floating("student_weight", student_weight)
    shape = student.shape[:-1]
    s = side_of("student", student, student_weight, student_bias, student_scale, student_softcap)
    code, beta = divergence_of(divergence, beta, skew)
    mode, taught, shard, own = DENSE, None, None, student_weight.shape[0]
    pair = vocabulary if isinstance(vocabulary, tuple) else None
    number = None if isinstance(vocabulary, tuple) else vocabulary
    if teacher is None:
        if alpha != 0 or return_terms:
            raise ValueError("teacher: None is for alpha=0, the cross-entropy alone; the KL needs one")
        without_a_head("teacher", teacher_weight, teacher_bias, teacher_scale, teacher_softcap)
        t, other = Side(s.hidden.detach(), None, None, 1.0, 0.0), None
    elif isinstance(teacher, SparseTargets):
        without_a_head("teacher", teacher_weight, teacher_bias, teacher_scale, teacher_softcap)
        if pair is not None or group is not None:
            what = "vocabulary: of two lists is" if pair is not None else "group: is"
            raise ValueError(f"{what} for a teacher with all its classes; SparseTargets list the student's own")
        classes = vocabulary_of(number, own, None)
        like = student.new_empty(0, dtype=accumulator(student, student_weight))
        ids, known, mode = sparse_call(teacher, shape, classes, tail, code, temperature, like)
        t, taught, other = Side(known, None, None, 1.0, 0.0, ids), (ids >= 0).any(1).reshape(shape), None
    else:
        check_floating("teacher", teacher)
        t = side_of("teacher", teacher, teacher_weight, teacher_bias, teacher_scale, teacher_softcap)
        if teacher.shape[:-1] != shape:
            raise ValueError(
                f"teacher: expected one row for each of the student's {list(shape)}, got {list(teacher.shape[:-1])}"
            )
        check_apart(t, student.device)
        other = t.classes()
    if group is not None:
        if pair is not None:
            raise ValueError("vocabulary: of two lists needs whole heads, group= has them in blocks")
        shard = shard_of(group, own, own if other is None else other, number, student.device)
        classes, total = shard.classes, shard.total
    elif pair is not None and other is not None:
        s_ids, t_ids = common_of(pair, own, other, code)
        s, t, mode = s._replace(ids=s_ids), t._replace(ids=t_ids), COMMON
        total = classes = own
    else:
        total = classes = vocabulary_of(number, own, other)
    check_terms(temperature, alpha, reduction, num_items, labels)
    if return_stats and reduction == "none":
        raise ValueError("return_stats: is of a sum or a mean, reduction='none' gives the rows' own numbers")
    if return_terms:
        check_apart_terms(weights, alpha, reduction, labels)
    rows = coefficients_of(
        *(shape, accumulator(student, student_weight), student.device, total),
        labels=labels,
        mask=mask,
        weight=weight,
        ignore_index=ignore_index,
        mask_by_labels=mask_by_labels,
        mean=reduction == "mean",
        num_items=num_items,
        alpha=alpha,
        taught=taught,
        weights=weights if return_terms else None,
    )
    t2 = float(temperature) ** 2 if scale_by_t2 else 1.0
    of_kl, of_ce = (1.0, 1.0) if return_terms else (alpha, 1.0 - alpha)
    options = Options(*(classes, mode, float(temperature), code, beta, of_kl * t2, of_ce, reduction != "none", backend))
    s, t = (in_autocast(side) for side in (s, t))
    apart = return_terms or (return_stats and rows.ce is not None)
    terms = (
        loss_of(s, t, rows, options, apart=apart)
        if shard is None
        else sharded_loss_of(shard, s, t, rows, options, apart=apart)
    )
    stats = (stats_of(terms, rows, options),) if return_stats else ()
    if return_terms:
        return *terms.unbind(), *stats
    loss = terms.sum() if apart else terms if options.reduce else terms.reshape(shape)
    return (loss, *stats) if return_stats else loss
