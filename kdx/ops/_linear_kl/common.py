"""Two vocabularies with classes in common: those are compared one by one, all others of each side as one.

Where ids are given of M common classes, a row is the M + 1 classes of softmax_kl: the common ones and a bucket, whose
logit ``T logsumexp(z / T)`` over the other classes gives it their probability.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdx.ops._linear_kl.call import Options, Rows
from kdx.ops._softmax_kl import reference as softmax_kl
from kdx.ops._topk_kl.rows import RowLosses, dense_rows

__all__ = ["common_losses", "common_of", "common_rows"]


def common_of(vocabulary: tuple[Tensor, Tensor], own: int, other: int, divergence: int) -> tuple[Tensor, Tensor]:
    """The numbers ``[M]`` of the common classes on the student's and on the teacher's side.

    Args:
        vocabulary: those of the call.
        own: how many classes the student has.
        other: how many the teacher has.
        divergence: its number.

    Raises:
        ValueError: they are no classes, or the divergence would be infinite.
        TypeError: they are not int64.
    """
    if len(vocabulary) != 2:
        raise ValueError(f"vocabulary: expected a number or (student_ids, teacher_ids), got {len(vocabulary)} things")
    for at, (ids, classes, side) in enumerate(zip(vocabulary, (own, other), ("student", "teacher"), strict=True)):
        if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
            what = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
            raise TypeError(f"vocabulary[{at}]: expected int64 classes of the {side}, got {what}")
        if ids.dim() != 1 or ids.shape != vocabulary[0].shape or not len(ids):
            raise ValueError(
                f"vocabulary: expected two lists of the same length, the common classes as each side numbers them; got "
                f"{[list(each.shape) for each in vocabulary]}"
            )
        if ids.device.type != "cpu" or torch.compiler.is_compiling():
            continue
        if int(ids.min()) < 0 or int(ids.max()) >= classes:
            raise ValueError(
                f"vocabulary[{at}]: expected classes of the {side}, 0 to {classes - 1}, got {int(ids.min())} to "
                f"{int(ids.max())}"
            )
        if int(torch.bincount(ids).max()) > 1:
            raise ValueError(f"vocabulary[{at}]: lists a class of the {side} twice")
    count = len(vocabulary[0])
    lacking = {softmax_kl.FORWARD: (own, "student"), softmax_kl.REVERSE: (other, "teacher")}.get(divergence)
    if lacking is not None and own != other and lacking[0] == count:
        raise ValueError(
            f"vocabulary: all {count} classes of the {lacking[1]} are common, so it has none for what the other side "
            "gives its further classes, and the divergence is infinite; 'jsd' and skew=0.1 are finite"
        )
    return vocabulary


def common_rows(
    row_losses: RowLosses,
    z_s: Tensor,  # [R, V_s]
    z_t: Tensor,  # [R, V_t], overwritten
    common: tuple[Tensor, Tensor],
    rows: Rows,
    options: Options,
    *,
    grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """Row losses ``[R]`` and their gradient ``[R, V_s]``, the cross-entropy's included."""
    T = options.temperature
    t, _ = _bucketed(z_t, common[1], T, in_place=True)
    s, rest = _bucketed(z_s, common[0], T)
    each, g_small = dense_rows(row_losses, s, t, Rows(rows.kl, None, None), options, grad=grad)
    g = None
    if g_small is not None:
        if len(common[0]) == z_s.shape[1]:
            g = torch.zeros_like(z_s)
        else:  # the bucket's gradient, shared as its probability is; 0 for the common classes, whose rest is -inf
            g = rest.sub_(torch.where(s[:, -1:].isneginf(), 0.0, s[:, -1:])).div_(T).exp_().mul_(g_small[:, -1:])
        g.index_copy_(1, common[0], g_small[:, :-1])
    if rows.ce is None:
        return each, g
    more, g_more = dense_rows(row_losses, z_s, z_s, rows.terms()[1], options, grad=grad)
    return each + more, g if g is None or g_more is None else g.add_(g_more)


def common_losses(z_s: Tensor, z_t: Tensor, common: tuple[Tensor, Tensor], rows: Rows, options: Options) -> Tensor:
    """Row losses ``[N]`` in plain PyTorch, twice differentiable with respect to the student's logits."""
    numbers = (options.temperature, options.divergence, options.beta, options.kl_scale, options.ce_scale)
    s, t = (_bucketed(z, ids, options.temperature)[0] for z, ids in zip((z_s, z_t), common, strict=True))
    each = softmax_kl.losses(s.unsqueeze(2), t.unsqueeze(2), rows.kl, None, None, *numbers)
    if rows.ce is not None:
        z = z_s.unsqueeze(2)
        only = rows.terms()[1]
        each = each + softmax_kl.losses(z, z.detach(), only.kl, only.labels, only.ce, *numbers)
    return each.squeeze(1)


def _bucketed(z: Tensor, ids: Tensor, temperature: float, *, in_place: bool = False) -> tuple[Tensor, Tensor]:
    """Logits ``[R, M + 1]`` of the common classes and of all others together, and ``z`` with -inf for the common."""
    picked = z.index_select(1, ids)
    if len(ids) == z.shape[1]:
        return torch.cat([picked, torch.full_like(z[:, :1], -torch.inf)], 1), z
    rest = z.index_fill_(1, ids, -torch.inf) if in_place else z.index_fill(1, ids, -torch.inf)
    return torch.cat([picked, temperature * torch.logsumexp(rest / temperature, 1, keepdim=True)], 1), rest
