"""linear_kl of heads in shards: each process of a group holds a block of the classes of both heads.

Hidden states, labels and masks are the same everywhere. What a row's softmaxes need of the other blocks are maxima and
sums, which are reduced over the group; then each process has the gradient of its own classes, and that of the hidden
states is the sum over the group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kdx.ops._linear_kl.autograd import scaled
from kdx.ops._linear_kl.call import Gradients, Options, Rows, Side, Wanted
from kdx.ops._linear_kl.chunks import in_chunks
from kdx.ops._softmax_kl import reference
from kdx.ops._topk_kl.rows import RowLosses

__all__ = ["Shard", "shard_of", "sharded_loss_of"]


@dataclass(frozen=True)
class Shard:
    """The classes of this process.

    Args:
        group: the processes that hold the others.
        first: number of the first class.
        classes: how many there are here.
        most: the largest number that a process of the group holds.
        total: how many there are in all.
    """

    group: Any
    first: int
    classes: int
    most: int
    total: int


def shard_of(group: Any, own: int, other: int, vocabulary: int | None, device: torch.device) -> Shard:
    """Asks the processes of the group for the sizes of their blocks.

    Args:
        group: the process group.
        own: classes of the student's head here.
        other: classes of the teacher's.
        vocabulary: the first so many classes count; None: all.
        device: of the heads.

    Raises:
        ValueError: the two heads are not cut at the same classes, or ``vocabulary`` is not a number of them. Every
            process of the group raises it.
    """
    here = torch.tensor([own, other], dtype=torch.int64, device=device)
    every = [torch.empty_like(here) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, here, group=group)
    sizes = torch.stack(every).cpu()
    ends = sizes.cumsum(0)
    least = int(ends[-1].min())
    if vocabulary is not None and (isinstance(vocabulary, bool) or not 0 < vocabulary <= least):
        raise ValueError(
            f"vocabulary: expected a number of classes that both heads have, 1 to {least}, got {vocabulary!r}"
        )
    total = int(ends[-1, 0]) if vocabulary is None else vocabulary
    counted = ends.clamp(max=total).diff(dim=0, prepend=torch.zeros_like(ends[:1]))
    if not counted[:, 0].equal(counted[:, 1]) or (vocabulary is None and not sizes[:, 0].equal(sizes[:, 1])):
        raise ValueError(
            f"group: its processes hold {sizes[:, 0].tolist()} classes of the student's head and "
            f"{sizes[:, 1].tolist()} of the teacher's; cut both heads at the same classes, and give the number of "
            "classes that both have as "
            "vocabulary= where they are padded to different sizes"
        )
    rank = dist.get_rank(group)
    first = int(ends[rank, 0]) - own
    return Shard(group, min(first, total), int(counted[rank, 0]), int(counted[:, 0].max()), total)


class _OverTheGroup(reference.Whole):
    def __init__(self, group: Any) -> None:
        self.group = group

    def maximum(self, parts: Tensor) -> Tensor:
        return self._reduced(parts, dist.ReduceOp.MAX)

    def total(self, parts: Tensor) -> Tensor:
        return self._reduced(parts, dist.ReduceOp.SUM)

    def _reduced(self, parts: Tensor, how: Any) -> Tensor:
        parts = parts.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(parts, how, group=self.group)
        return parts


def _row_losses(shard: Shard) -> RowLosses:
    """``forward`` of a backend of softmax_kl for rows of which each process has some classes; ``labels`` are global."""
    whole = _OverTheGroup(shard.group)

    def forward(
        student: Tensor,  # [R, C, 1]
        teacher: Tensor,
        kl_rows: Tensor,
        labels: Tensor | None,
        ce_rows: Tensor | None,
        temperature: float,
        divergence: int,
        beta: float,
        kl_scale: float,
        ce_scale: float,
        reduce: bool,
        grad: bool,
    ) -> tuple[Tensor, Tensor | None]:
        assert not reduce
        classes = student.shape[1]
        if not classes:  # one class that neither side has
            student, teacher = (x.new_full((x.shape[0], 1, 1), -torch.inf) for x in (student, teacher))
        found = torch.zeros_like(student[:, 0])
        g = torch.zeros_like(student) if grad else None
        if kl_scale != 0:
            kl = (kl_scale * kl_rows)[:, None, None]
            s, t = (torch.where(kl == 0, 0.0, x) for x in (student, teacher))
            k = reference.classes_of(s, t, temperature, whole)
            found += kl[:, 0] * whole.total(reference.divergence_of_classes(k, divergence, beta))
            if g is not None:
                more = kl * reference.gradient_of_classes(k, divergence, beta, temperature, whole)
                g += torch.where(kl == 0, 0.0, more)
        if labels is not None and ce_rows is not None:
            ce = (ce_scale * ce_rows)[:, None, None]
            s = torch.where(ce == 0, 0.0, student)
            e_m = whole.maximum(s.amax(1, keepdim=True))
            e = torch.exp(s - e_m)
            l_1 = whole.total(e.sum(1, keepdim=True))
            y = (labels - shard.first)[:, None, None]
            here = (y >= 0) & (y < classes)
            at = torch.where(here, y, 0)
            s_y = whole.total(torch.where(here, s.gather(1, at), 0.0))
            found += (ce * (torch.log(l_1) + (e_m - s_y)))[:, 0]
            if g is not None:
                one = torch.zeros_like(s).scatter_(1, at, here.to(s.dtype))
                g += torch.where(ce == 0, 0.0, ce * (e / l_1 - one))
        return found, g if g is None or classes else g[:, :0]

    return forward


@dataclass(frozen=True)
class _Call:
    """Everything of a call but the student's tensors."""

    shard: Shard
    student: Side
    teacher: Side
    rows: Rows
    options: Options
    apart: bool

    def run(self, tensors: Any, rows: Rows, options: Options, wanted: Wanted, apart: bool) -> tuple[Tensor, Gradients]:
        hidden, weight, bias = tensors
        student = self.student._replace(hidden=hidden, weight=weight, bias=bias)
        losses = _row_losses(self.shard)
        with torch.autocast(hidden.device.type, enabled=False):
            found, (for_hidden, for_weight, for_bias) = in_chunks(
                *(losses, losses, student, self.teacher, rows, options, wanted),
                apart=apart,
                most=self.shard.most,
                wide=True,
            )
        if for_hidden is not None:
            dist.all_reduce(for_hidden, group=self.shard.group)
            for_hidden = for_hidden.to(hidden.dtype)
        return found, (for_hidden, for_weight, for_bias)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor | None) -> Tensor:
        wanted = Wanted(*(call.options.reduce and needed for needed in ctx.needs_input_grad[1:]))
        losses, made = call.run(tensors, call.rows, call.options, wanted, call.apart)
        ctx.save_for_backward(*tensors, *made)
        ctx.call = call
        return losses.sum(-1, dtype=torch.float64).to(losses.dtype) if call.options.reduce else losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # looked at once: under a checkpoint they are there only once
        call, tensors, made = ctx.call, saved[:3], saved[3:]
        if torch.is_grad_enabled():
            raise RuntimeError("linear_kl: with group= it is differentiated once; create_graph=True needs whole heads")
        of_kl, of_ce = upstream if call.apart else (upstream, upstream)
        if call.options.reduce and of_kl.equal(of_ce):
            return None, *(None if each is None else scaled(each, of_kl) for each in made)
        kl, labels, ce = call.rows
        rows = Rows(kl * of_kl, labels, None if ce is None else ce * of_ce)
        wanted = Wanted(*ctx.needs_input_grad[1:])
        _, found = call.run(tensors, rows, call.options._replace(reduce=True), wanted, apart=False)
        return None, *found


def sharded_loss_of(
    shard: Shard, student: Side, teacher: Side, rows: Rows, options: Options, *, apart: bool = False
) -> Tensor:
    """Row losses ``[N]``, their sum, or the sums ``[2]`` of ``apart``, where each process has some of the classes."""
    apply: Any = _Loss.apply
    rest = student._replace(hidden=student.hidden.detach(), weight=None, bias=None)
    result: Tensor = apply(_Call(shard, rest, teacher, rows, options, apart), *student[:3])
    return result
