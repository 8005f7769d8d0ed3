"""The numbers of each row of a loss with a KL and a cross-entropy: which rows count in which term, and for how much."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdx.errors import nearest
from kdx.ops._linear_kl.call import Rows
from kdx.ops._num_items import check_num_items
from kdx.ops._term_weights import check_weights

__all__ = ["check_apart_terms", "check_terms", "coefficients_of"]

_REDUCTIONS = ("none", "sum", "mean")


def check_terms(
    temperature: float, alpha: float, reduction: str, num_items: float | Tensor | None, labels: Tensor | None
) -> None:
    """Checks the options that say how the terms are taken together.

    Raises:
        ValueError: one of them is out of range or does not go with another.
    """
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction: there is no {reduction!r}; {nearest(reduction, _REDUCTIONS)}")
    if not temperature > 0 or math.isinf(temperature):
        raise ValueError(f"temperature: expected a finite number above 0, got {temperature}")
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha: expected a share in [0, 1], got {alpha}")
    if labels is None and alpha != 1.0:
        raise ValueError(f"labels: are needed for the cross-entropy, whose share is 1 - alpha = {1.0 - alpha:g}")
    check_num_items(num_items, reduction)


def check_apart_terms(
    weights: tuple[float | Tensor, float | Tensor], alpha: float, reduction: str, labels: Tensor | None
) -> None:
    """Checks the options of a call whose terms come apart.

    Raises:
        ValueError: one of them says what does not hold of two terms.
    """
    if labels is None:
        raise ValueError("labels: are needed for the cross-entropy, one of the two terms of return_terms=True")
    if alpha != 1.0:
        raise ValueError(f"alpha: mixes the terms into one loss, got {alpha:g}; of two terms weights=(w_kl, w_ce) are")
    check_weights(weights, reduction)


def coefficients_of(
    shape: torch.Size,
    dtype: torch.dtype,
    device: torch.device,
    classes: int,
    *,
    labels: Tensor | None,
    mask: Tensor | None,
    weight: Tensor | None,
    ignore_index: int,
    mask_by_labels: bool,
    mean: bool,
    num_items: float | Tensor | None,
    alpha: float,
    taught: Tensor | None = None,
    weights: tuple[float | Tensor, float | Tensor] | None = None,
) -> Rows:
    """The coefficients ``[N]`` of the two terms, divided by what the mean divides by, and the labels.

    Args:
        shape: of the rows.
        dtype: of the coefficients.
        device: of the rows.
        classes: how many labels there are.
        labels: see :func:`kdx.ops.linear_kl`, as the others.
        mask: bool per row.
        weight: float per row.
        ignore_index: label of rows without one.
        mask_by_labels: whether those count for nothing.
        mean: whether the terms are averaged, else added up.
        num_items: what the mean divides by instead of the rows that count.
        alpha: share of the KL; the coefficients are 0 or left out where a term has none.
        taught: bool per row, False where the teacher says nothing; None: it does in every row.
        weights: of the two terms, both of which are then wanted whatever ``alpha`` is.

    Raises:
        ValueError: a tensor of another shape or device, or a label that is no class.
        TypeError: a tensor of another type.
    """
    for name, x, wanted in (("labels", labels, torch.int64), ("mask", mask, torch.bool), ("weight", weight, None)):
        if x is None:
            continue
        if wanted and x.dtype != wanted:
            raise TypeError(f"{name}: expected {str(wanted).removeprefix('torch.')}, got {x.dtype}")
        if x.shape != shape or x.device != device:
            raise ValueError(
                f"{name}: expected one per row, {list(shape)} on {device}, got {list(x.shape)} on {x.device}"
            )
    if weight is not None:
        if not weight.dtype.is_floating_point:
            raise TypeError(f"weight: expected floating-point numbers, got {weight.dtype}")
        if weight.requires_grad and torch.is_grad_enabled():
            raise ValueError("weight: gets no gradient; pass weight.detach()")

    def divided(counts: Tensor) -> Tensor:
        flat = counts.reshape(-1)
        rows = flat.to(dtype) if weight is None else torch.where(flat, weight.reshape(-1).to(dtype), 0.0)
        if not mean:
            return rows
        if num_items is None:
            return rows / flat.sum().clamp(min=1)
        each = rows / (num_items.reshape(()).to(rows) if isinstance(num_items, Tensor) else num_items)
        return torch.where(flat, each, 0.0)  # of no row, whose number may be 0, there is nothing

    counts = torch.ones(shape, dtype=torch.bool, device=device) if mask is None else mask
    labelled = counts
    if labels is not None:
        labelled = counts & (labels != ignore_index)
        _check_labels(labels, labelled, classes, ignore_index)
        counts = labelled if mask_by_labels else counts
    kl = divided(counts if taught is None else counts & taught)
    if weights is not None and labels is not None:
        of_kl, of_ce = (w.reshape(()).to(kl) if isinstance(w, Tensor) else w for w in weights)
        return Rows(of_kl * kl, labels.reshape(-1), of_ce * divided(labelled))
    if labels is None or alpha == 1.0:
        return Rows(kl, None, None)
    return Rows(torch.zeros_like(kl) if alpha == 0.0 else kl, labels.reshape(-1), divided(labelled))


def _check_labels(labels: Tensor, counts: Tensor, classes: int, ignore_index: int) -> None:
    if labels.device.type != "cpu" or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return
    wrong = labels[counts & ((labels < 0) | (labels >= classes))]
    if wrong.numel():
        raise ValueError(
            f"labels: expected classes in [0, {classes}) or ignore_index={ignore_index}, got {int(wrong[0])}"
        )
