"""topk_kl: what a user calls. Arguments are checked here, once; the mathematics is in README.md."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdx.errors import nearest
from kdx.ops._dtypes import accumulator
from kdx.ops._linear_kl.call import BUCKET, DROP, EVEN, RENORMALISE, SAMPLED, Options
from kdx.ops._linear_kl.row_numbers import check_terms, coefficients_of
from kdx.ops._softmax_kl.api import check_scale, divergence_of
from kdx.ops._topk_kl.autograd import loss_of
from kdx.ops._topk_kl.targets import SparseTargets

__all__ = ["sparse_call", "topk_kl"]

_TAILS = {"bucket": BUCKET, "even": EVEN, "renormalise": RENORMALISE, "drop": DROP}


def topk_kl(
    student_logits: Tensor,
    targets: SparseTargets,
    *,
    tail: str = "bucket",
    labels: Tensor | None = None,
    alpha: float = 1.0,
    temperature: float = 1.0,
    divergence: str = "forward",
    beta: float = 0.5,
    skew: float = 0.0,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    mask_by_labels: bool = True,
    reduction: str = "mean",
    num_items: float | Tensor | None = None,
    scale_by_t2: bool = True,
    scale: float = 1.0,
    once_differentiable: bool = False,
    backend: str = "auto",
) -> Tensor:
    """The distillation loss against a few classes of the teacher's in each row, never spread over all classes.

    ``alpha T^2 KL + (1 - alpha) CE(labels)``, with the classes that are not listed (the tail) treated as one of:

    - ``"bucket"``: one class of the summed probability, on both sides. A lower bound of the full divergence, 0 with
      its gradient where the sides agree; equal to it where all classes are listed.
    - ``"even"``: the teacher's rest is shared evenly by all other classes. Its gradient is nearer to the full one far
      from agreement, and wrong near it: the loss does not become 0.
    - ``"renormalise"``: the teacher's listed probabilities are scaled to add up to 1.
    - ``"drop"``: the sum over the listed classes alone; not a divergence, it can be negative.

    Samples (``targets.kind == "sampled"``) give the mean of ``log p - log q`` over them, whose gradient is that of the
    full forward KL in expectation.

    Args:
        student_logits: ``[..., V]``, float32, float64, bfloat16 or float16. They alone get a gradient.
        targets: the teacher's classes, see :class:`SparseTargets`; of the same leading dimensions.
        tail: see above; samples have none and take the default.
        labels: int64 classes ``[...]`` for the cross-entropy, taken at temperature 1 from the same logits.
        alpha: share of the KL, in [0, 1]; anything but 1 needs labels.
        temperature: T > 0, the one that the targets were taken at.
        divergence: ``"forward"``, ``"reverse"`` or ``"jsd"``, see `softmax_kl`; the latter two with ``"bucket"`` and
            ``"even"``.
        beta: weight of the teacher in the mixture of ``"jsd"``, in [0, 1].
        skew: s in [0, 1) of the skewed forward and reverse KL, see `softmax_kl`.
        mask: bool per row; rows where it is False count for nothing and are never read.
        weight: float per row, multiplies both terms of it.
        ignore_index: label of rows that have none.
        mask_by_labels: whether rows without a label count for nothing; else they take part in the KL.
        reduction: ``"none"`` (one loss per row), ``"sum"``, or ``"mean"``, each term over its own rows that count. Rows
            for which the teacher has no class at all do not take part in the KL.
        num_items: a number, or a tensor without dimensions, that ``"mean"`` divides by instead.
        scale_by_t2: multiply the KL by T^2, so that gradients keep their size when T changes.
        scale: a number that loss and gradient are multiplied by, see `softmax_kl`.
        once_differentiable: keep nothing but the gradient for the backward pass, see `softmax_kl`.
        backend: ``"auto"``, or the name of one that has to run it.

    Returns:
        A number, or with ``"none"`` the rows' losses, in float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes, devices or values that do not fit, or targets of another temperature.
        TypeError: tensors of another type.
        BackendError: the named backend cannot run here.

    Example:
        >>> import torch, kdx
        >>> logits = torch.tensor([[2.0, 1.0, 0.0, 0.0]], requires_grad=True)
        >>> top = torch.tensor([[0.7, 0.2]]).log()
        >>> loss = kdx.ops.topk_kl(logits, kdx.ops.SparseTargets(torch.tensor([[0, 1]]), top))
        >>> loss.backward()
        >>> round(loss.item(), 4), [round(g, 4) for g in logits.grad[0].tolist()]
        (0.0227, [-0.0897, 0.0245, 0.0326, 0.0326])

    """
    if not isinstance(targets, SparseTargets):
        raise TypeError(f"targets: expected kdx.ops.SparseTargets, got {type(targets).__name__}")
    if not isinstance(student_logits, Tensor) or not student_logits.is_floating_point():
        what = student_logits.dtype if isinstance(student_logits, Tensor) else type(student_logits).__name__
        raise TypeError(f"student_logits: expected floating-point logits, got {what}")
    shape = student_logits.shape[:-1]
    classes = student_logits.shape[-1] if student_logits.dim() else 0
    code, beta = divergence_of(divergence, beta, skew)
    check_terms(temperature, alpha, reduction, num_items, labels)
    ids, known, mode = sparse_call(targets, shape, classes, tail, code, temperature, student_logits)
    check_scale(scale)
    rows = coefficients_of(
        *(shape, accumulator(student_logits), student_logits.device, classes),
        labels=labels,
        mask=mask,
        weight=weight,
        ignore_index=ignore_index,
        mask_by_labels=mask_by_labels,
        mean=reduction == "mean",
        num_items=num_items,
        alpha=alpha,
        taught=(ids >= 0).any(1).reshape(shape),
    )
    options = Options(
        *(classes, mode, float(temperature), code, beta),
        *(scale * alpha * (float(temperature) ** 2 if scale_by_t2 else 1.0), scale * (1.0 - alpha)),
        *(reduction != "none", backend),
    )
    loss = loss_of(student_logits.reshape(-1, classes), ids, known, rows, options, once=once_differentiable)
    return loss if options.reduce else loss.reshape(shape)


def sparse_call(
    targets: SparseTargets,
    shape: torch.Size,
    classes: int,
    tail: str,
    divergence: int,
    temperature: float,
    like: Tensor,
) -> tuple[Tensor, Tensor, int]:
    """The flat targets, ``ids [N, K]`` and ``known [N, K + 1]``, and the number of their tail.

    Args:
        targets: those of the call.
        shape: of the student's rows.
        classes: how many the student has.
        tail: of the call.
        divergence: its number.
        temperature: of the call.
        like: the student's, whose device and accumulation dtype they are to have.

    Raises:
        ValueError: they do not fit the student's rows, the classes, or the options; the message says what does.
    """
    if targets.ids.shape[:-1] != shape:
        raise ValueError(
            f"targets: expected one row of classes for each of the student's {list(shape)}, got "
            f"{list(targets.ids.shape[:-1])}"
        )
    device, dtype = like.device, accumulator(like)
    if targets.ids.device != device:
        raise ValueError(
            f"targets: are on {targets.ids.device}, the student on {device}; targets.to(device) moves them"
        )
    if not math.isclose(targets.temperature, temperature, rel_tol=1e-6):
        raise ValueError(
            f"temperature: the targets were taken at {targets.temperature:g}, got {temperature:g}; what a few classes "
            "are at another temperature cannot be known, take the teacher's top classes at the temperature of the loss"
        )
    if tail not in _TAILS:
        raise ValueError(f"tail: there is no {tail!r}; {nearest(tail, _TAILS)}")
    mode = SAMPLED if targets.kind == "sampled" else _TAILS[tail]
    if mode == SAMPLED and tail != "bucket":
        raise ValueError(f"tail: samples have none, got {tail!r}; leave it out")
    if mode not in (BUCKET, EVEN) and divergence != 0:
        what = "samples" if mode == SAMPLED else f"tail={tail!r}"
        raise ValueError(f"divergence: {what} give forward KL alone; tail='bucket' or 'even' give the others too")
    ids, known = targets.flat()
    if ids.numel() and device.type == "cpu" and not torch.compiler.is_compiling():
        least, most = int(ids.min()), int(ids.max())
        if most >= classes or least < -1 or (targets.valid is None and least < 0):
            raise ValueError(
                f"targets.ids: expected classes in [0, {classes}), got {int(targets.ids.min())} to {most}; "
                "were they written for another vocabulary?"
            )
    every = (ids >= 0).sum(1, keepdim=True) == classes  # then rounding alone leaves something for the others
    known = torch.cat([known[:, :-1], torch.where(every, -torch.inf, known[:, -1:])], 1)
    return ids, known.to(dtype), mode
