"""The loss of two heads in chunks of rows: the logits of one chunk at a time are made, compared and thrown away.

Products are torch's, the loss and its gradient those of a backend of softmax_kl. Operands of half precision are
multiplied into float32 logits; the gradients of the head are added up over the chunks in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from kdx.ops._dtypes import accumulator
from kdx.ops._linear_kl.call import COMMON, Gradients, Options, Rows, Side, Wanted
from kdx.ops._linear_kl.common import common_rows
from kdx.ops._topk_kl.rows import RowLosses, dense_rows

__all__ = ["CHUNK_BYTES", "chunks_of", "in_chunks"]

CHUNK_BYTES = {"cpu": 240 << 20, "cuda": 3 << 30}
"""Device -> bytes of the logits of both sides and of their gradient at a time."""
FEWEST = 4
"""Rows from which on a library's product gives a row the same bits whatever rows are multiplied with it."""
BLOCK = 4096
"""Classes whose weights are widened at a time, where there is no product of halves into float32."""


def in_chunks(
    row_losses: RowLosses,
    few_losses: RowLosses,
    student: Side,
    teacher: Side,
    rows: Rows,
    options: Options,
    wanted: Wanted,
    *,
    apart: bool,
    most: int | None = None,
    wide: bool = False,
) -> tuple[Tensor, Gradients]:
    """Row losses ``[N]`` and the gradients of their sum with respect to the student's side that are wanted.

    Rows whose coefficients are 0 are never read and cost no product.

    Args:
        row_losses: ``forward`` of a backend of softmax_kl.
        few_losses: ``forward`` of a backend of topk_kl.
        student: with a head.
        teacher: with or without one.
        rows: see :class:`Rows`.
        options: see :class:`Options`.
        wanted: see :class:`Wanted`.
        apart: whether the losses are ``[2, N]``, those of the KL and those of the cross-entropy.
        most: classes that chunks are cut for, instead of those at hand.
        wide: whether the gradient of the hidden states stays in the accumulation dtype.
    """
    x, weight = student.hidden, student.weight
    assert weight is not None
    acc, C, device = accumulator(x, weight), options.classes, x.device
    found = torch.zeros((2 if apart else 1, x.shape[0]), dtype=acc, device=device)
    d_hidden = torch.zeros(x.shape, dtype=acc if wide else x.dtype, device=device) if wanted.hidden else None
    d_weight = torch.zeros(weight.shape, dtype=acc, device=device) if wanted.weight else None
    d_bias = torch.zeros(weight.shape[0], dtype=acc, device=device) if wanted.bias else None
    if options.tail == COMMON:  # both sides' logits, those without the common classes, and what the common ones are
        most = 2 * (C + teacher.classes())
    for at in chunks_of(rows, C if most is None else most, acc, CHUNK_BYTES):
        s, few = student.hidden[at], rows.at(at)
        z_s = _logits(student._replace(hidden=s), C, acc)
        alone = Rows(few.kl, None, None) if apart else few
        if options.kl_scale == 0:  # the student stands in for a teacher that nobody looks at
            each, g = dense_rows(row_losses, z_s, z_s, alone, options, grad=any(wanted))
        elif options.tail == COMMON:
            assert student.ids is not None
            assert teacher.ids is not None
            z_t = _logits(teacher._replace(hidden=teacher.hidden[at]), teacher.classes(), acc)
            ids = student.ids, teacher.ids
            if teacher.weight is None:  # may be the caller's own logits, and common_rows writes into them
                z_t = z_t.clone()
            each, g = common_rows(row_losses, z_s, z_t, ids, alone, options, grad=any(wanted))
            del z_t
        elif teacher.ids is not None:
            each, g = few_losses(z_s, teacher.ids[at], teacher.hidden[at], alone, options, grad=any(wanted))
        else:
            z_t = _logits(teacher._replace(hidden=teacher.hidden[at]), C, acc)
            each, g = dense_rows(row_losses, z_s, z_t, alone, options, grad=any(wanted))
            del z_t
        found[0, at] = each
        if apart:
            only = few._replace(kl=torch.zeros_like(few.kl))
            found[1, at], more = dense_rows(row_losses, z_s, z_s, only, options, grad=any(wanted))
            g = more if g is None or more is None else g.add_(more)
        if g is None:
            continue
        g = _before_the_cap(g, z_s, student)
        del z_s
        if d_bias is not None:
            d_bias[:C] += g.sum(0)
        if d_hidden is not None:
            d_hidden[at] = _times_weight(g, weight[:C], d_hidden.dtype).to(d_hidden.dtype)
        if d_weight is not None:
            _add_outer(d_weight[:C], g, s)
        del g  # before the logits of the next chunk are made
    cast = (None if d_weight is None else d_weight.to(weight.dtype)), _as(d_bias, student.bias)
    return found if apart else found[0], (d_hidden, *cast)


def chunks_of(rows: Rows, classes: int, dtype: torch.dtype, room: Mapping[str, int]) -> Iterator[slice | Tensor]:
    """The rows of each chunk: a slice where all rows count, else the numbers of those that do.

    Args:
        rows: those whose coefficients are 0 do not count.
        classes: of a row.
        dtype: of its logits, of which a chunk holds three times as many as a row has classes.
        room: device type -> bytes of them.
    """
    counts = rows.counted()
    which = counts.nonzero().squeeze(1)  # waits for the device once, instead of multiplying rows that do not count
    total, every = which.shape[0], which.shape[0] == counts.shape[0]
    most = max(room.get(counts.device.type, room["cuda"]) // (3 * classes * torch.finfo(dtype).bits // 8), 1)
    size = -(-total // max(-(-total // most), 1))  # of equal chunks
    for start in range(0, total, max(size, 1)):
        yield slice(start, min(start + size, total)) if every else which[start : start + size]


def _logits(side: Side, classes: int, acc: torch.dtype) -> Tensor:
    """``[R, classes]`` in ``acc``."""
    x = side.hidden
    if side.weight is None:
        return x[:, :classes].to(acc)
    more = max(FEWEST - x.shape[0], 0)
    z = _product(F.pad(x, (0, 0, 0, more)) if more else x, side.weight[:classes], acc)[: x.shape[0]]
    if side.bias is not None:
        z += side.bias[:classes]
    if side.scale != 1:
        z *= side.scale
    if side.softcap:
        z.div_(side.softcap).tanh_().mul_(side.softcap)
    return z


def _product(x: Tensor, weight: Tensor, acc: torch.dtype) -> Tensor:
    """``x weight'`` ``[R, C]`` in ``acc``, of operands that may be narrower."""
    if x.dtype == weight.dtype == acc:
        return x @ weight.T
    if _multiplies_halves(x, weight):
        return torch.mm(x, weight.T, out_dtype=acc)
    z, wide = x.new_empty((x.shape[0], weight.shape[0]), dtype=acc), x.to(acc)
    for at in _blocks(weight):
        torch.mm(wide, weight[at].to(acc).T, out=z[:, at])
    return z


def _times_weight(g: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """``g weight`` ``[R, H]``, added up in the dtype of ``g`` and rounded once."""
    if weight.dtype == g.dtype:
        return g @ weight
    if weight.device.type == "cuda":
        narrow = g.to(weight.dtype)
        return narrow @ weight if weight.dtype == dtype else torch.mm(narrow, weight, out_dtype=g.dtype)
    total = g.new_zeros((g.shape[0], weight.shape[1]))
    for at in _blocks(weight):
        total.addmm_(g[:, at], weight[at].to(g.dtype))
    return total


def _add_outer(total: Tensor, g: Tensor, x: Tensor) -> None:
    """Adds ``g' x`` to ``total``."""
    if x.device.type == "cuda" and x.dtype != total.dtype:
        torch.addmm(total, g.to(x.dtype).T, x, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(g.T, x.to(total.dtype))


def _before_the_cap(g: Tensor, z: Tensor, side: Side) -> Tensor:
    """The gradient of the logits turned, in place, into that of the product; ``z`` is overwritten too."""
    if side.softcap:
        g.mul_(z.div_(side.softcap).square_().neg_().add_(1))
    if side.scale != 1:
        g.mul_(side.scale)
    return g


def _multiplies_halves(x: Tensor, weight: Tensor) -> bool:
    """Whether torch has a product of these into float32."""
    return x.device.type == "cuda" and x.dtype == weight.dtype


def _blocks(weight: Tensor) -> Iterator[slice]:
    for start in range(0, weight.shape[0], BLOCK):
        yield slice(start, min(start + BLOCK, weight.shape[0]))


def _as(gradient: Tensor | None, like: Tensor | None) -> Tensor | None:
    return gradient if gradient is None or like is None else gradient.to(like.dtype)
