"""softmax_kl in Triton: the shipped tile shapes and the launches of triton_kernels.py."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdx.ops._dtypes import SINGLE, no_kernel
from kdx.ops._launch import check_logits, check_upstream, dense, on, zeroed
from kdx.ops._softmax_kl import triton_kernels as kernels
from kdx.ops._triton_launch import launch

_TICKET_BYTES = 16
_STATISTICS = 6  # per row and split
_SCALE_BLOCK = 4096
_SCALE_PROGRAMS = 2048  # a few waves, so that leaving at once costs no more than a small launch


class Shape(NamedTuple):
    """How a row of C classes is worked on.

    rows: rows a program (1 beyond the resident shapes); block: classes of a tile; splits: parts of a row, a program
    each.
    """

    rows: int
    block: int
    warps: int
    splits: int = 1


# Up to this many classes a whole row stays in the registers of one program. The table stands in for tuning on the
# first call; it comes from what the compiler reports (tests/native/test_triton_gates.py), not from a measurement.
RESIDENT: tuple[tuple[int, Shape], ...] = (
    (16, Shape(64, 16, 4)),
    (32, Shape(32, 32, 4)),
    (64, Shape(16, 64, 4)),
    (128, Shape(8, 128, 4)),
    (256, Shape(4, 256, 4)),
    (512, Shape(2, 512, 4)),
    (1024, Shape(1, 1024, 4)),
    (2048, Shape(1, 2048, 4)),
    (4096, Shape(1, 4096, 8)),
    (8192, Shape(1, 8192, 16)),
)
_TILE = 4096  # classes of a tile where a row is read more than once
_SPLIT_FROM = 32768  # longer rows are cut into parts of at least this many classes
_MAX_SPLITS = 64


def shape_for(classes: int) -> Shape:
    """The shipped tile shape for rows of this many classes."""
    for bound, shape in RESIDENT:
        if classes <= bound:
            return shape
    splits = min(_MAX_SPLITS, classes // _SPLIT_FROM) if classes > _SPLIT_FROM else 1
    return Shape(1, _TILE, 8, splits)


def unsupported(student: Tensor, teacher: Tensor) -> str | None:
    """Why this backend cannot run these tensors, or None."""
    return no_kernel(SINGLE, student, float64="cpu, cuda and reference")


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Launch on ``device``; on a CPU the interpreter runs the kernel in numpy, which would warn of -inf minus -inf."""
    return np.errstate(all="ignore") if device.type == "cpu" else on(device)


def written(like: Tensor) -> torch.dtype:
    """The dtype a kernel writes: that of ``like``, but the interpreter cuts fp32 to bf16 where the hardware rounds."""
    return torch.float32 if like.device.type == "cpu" else like.dtype


class _Side(NamedTuple):
    """Strides of one tensor, those between rows in units of ``pack`` classes; ``unit``: classes are neighbours."""

    outer: int
    inner: int
    step: int
    unit: bool


def _pack(C: int, tensors: list[Tensor]) -> int:
    """The largest power of two up to 16 that divides C and every distance between rows: what wide accesses need."""
    common = math.gcd(C, 16)
    for x in tensors:
        if x.stride(1) != 1 and C > 1:
            return 1
        for size, stride in ((x.shape[0], x.stride(0)), (x.shape[2], x.stride(2))):
            common = math.gcd(common, stride) if size > 1 else common
    return common


def _side(x: Tensor | None, flat: bool, pack: int) -> _Side:
    if x is None:
        return _Side(0, 0, 0, True)
    o, c, i = x.stride()
    unit = c == 1 or x.shape[1] == 1
    return _Side(0, o // pack, c, unit) if flat else _Side(o // pack, i // pack, c, unit)


def forward(
    student: Tensor,  # [O, C, I]
    teacher: Tensor,  # [O, C, I]
    kl_rows: Tensor | None,  # [O * I]
    labels: Tensor | None,  # [O * I]
    ce_rows: Tensor | None,  # [O * I]
    temperature: float,
    divergence: int,
    beta: float,
    kl_scale: float,
    ce_scale: float,
    reduce: bool,
    grad: bool,
    *,
    ce_losses: Tensor | None = None,  # [O * I]
) -> tuple[Tensor, Tensor | None]:
    """Row losses or their sum, and the gradient with respect to the student; README.md section "Backends"."""
    O, C, I = student.shape  # noqa: E741
    check_logits(student, teacher, kl_rows, labels, ce_rows, ce_losses)
    device = student.device
    out = torch.empty_like(student, dtype=written(student)) if grad else None
    if O * I == 0:
        return torch.zeros(
            () if reduce else (O, I), dtype=torch.float32, device=device
        ), None if out is None else out.to(student.dtype)
    shape = shape_for(C)
    pack = _pack(C, [x for x in (student, teacher, out) if x is not None])
    flat = I == 1  # then the rows lie along O alone
    sides = [_side(x, flat, pack) for x in (student, teacher, out)]
    strides = [number for side in sides for number in (side.outer, side.inner, side.step)]
    inner = O if flat else I
    loss = torch.empty(() if reduce else (O, I), dtype=torch.float32, device=device)
    factors = (1.0 / temperature, 1.4426950408889634 / temperature, beta, kl_scale, ce_scale)
    flags: dict[str, Any] = {
        "BLOCK": shape.block,
        "PACK": pack,
        "DIVERGENCE": divergence,
        "KL_ROWS": kl_rows is not None,
        "LABELS": labels is not None,
        "GRAD": grad,
        "REDUCE": reduce,
        "APART": ce_losses is not None,
        "STAND_IN": kl_rows is not None or kl_scale == 0.0,
        "S1": sides[0].unit,
        "T1": sides[1].unit,
        "G1": sides[2].unit,
        "num_warps": shape.warps,
    }
    resident = shape.block >= C
    tiles = -(-inner // shape.rows)
    programs = tiles * (O * I // inner) if resident else O * I * shape.splits
    tensors = (student, teacher, out, loss, *_scratch(device, programs, reduce), kl_rows, labels, ce_rows, ce_losses)
    with on_device(device):
        if resident:
            launch(
                kernels.resident_kernel,
                programs,
                device,
                *tensors,
                inner,
                tiles,
                programs,
                C // pack,
                *strides,
                *factors,
                ROWS=shape.rows,
                **flags,
            )
        elif shape.splits == 1:
            all_tiles = -(-C // shape.block)
            launch(
                kernels.loop_kernel, programs, device,
                *tensors, None, None, inner, programs, C // pack, all_tiles, *strides, *factors,
                PHASE=kernels.ALL.value, SPLITS=1, SPLITS_2=1, **flags,
            )  # fmt: skip
        else:
            _split(tensors, (inner, programs, C // pack), -(-C // shape.block), strides, factors, shape, flags)
    return loss, None if out is None else out.to(student.dtype)


def _scratch(device: torch.device, programs: int, reduce: bool) -> tuple[Tensor | None, Tensor | None]:
    """The programs' shares of the loss, and the counter by which the last one knows itself."""
    if not reduce:
        return None, None
    space = zeroed(device, _TICKET_BYTES + 4 * programs)
    shares = space[_TICKET_BYTES : _TICKET_BYTES + 4 * programs].view(torch.float32)
    return shares, space[:4].view(torch.int32)


def _split(
    tensors: tuple[Tensor | None, ...],
    sizes: tuple[int, int, int],
    all_tiles: int,
    strides: list[int],
    factors: tuple[float, ...],
    shape: Shape,
    flags: dict[str, Any],
) -> None:
    """Rows in parts: statistics; loss; gradient (with the loss, where it needs no total of the row)."""
    loss = tensors[3]
    assert loss is not None
    inner, programs, chunks = sizes
    statistics = torch.empty(programs * _STATISTICS, dtype=torch.float32, device=loss.device)
    totals = torch.empty(programs, dtype=torch.float32, device=loss.device)
    parts = loss if flags["REDUCE"] else torch.empty_like(totals)
    tensors = (*tensors[:3], parts, *tensors[4:])
    phases = [kernels.STATISTICS, kernels.LOSS]
    if flags["GRAD"] and flags["DIVERGENCE"] != kernels.FORWARD.value:
        phases.append(kernels.GRADIENT)
    for phase in phases:
        launch(
            kernels.loop_kernel, programs, loss.device,
            *tensors, statistics, totals, inner, programs, chunks, -(-all_tiles // shape.splits), *strides, *factors,
            PHASE=phase.value, SPLITS=shape.splits, SPLITS_2=1 << (shape.splits - 1).bit_length(), **flags,
        )  # fmt: skip
    if not flags["REDUCE"]:
        torch.sum(parts.view(-1, shape.splits), 1, out=loss.view(-1))


def scale_grad(grad: Tensor, upstream: Tensor) -> Tensor:
    """``grad * upstream`` in a new tensor, rounded once; ``upstream`` is read by the kernel, not by the host."""
    check_upstream(grad, upstream)
    grad, out = dense(grad, written(grad))
    n = grad.numel()
    if n:
        with on_device(grad.device):
            arguments = grad, upstream, out, n
            launch(
                kernels.scale_kernel, -(-n // _SCALE_BLOCK), grad.device, *arguments, BLOCK=_SCALE_BLOCK, num_warps=8
            )
    return out.to(grad.dtype)


def scale_grad_(grad: Tensor, upstream: Tensor) -> None:
    """The same in ``grad`` itself, which has no gaps; the kernel leaves at once where ``upstream`` is 1."""
    check_upstream(grad, upstream)
    if written(grad) != grad.dtype:  # the interpreter stores no bfloat16
        grad.copy_(scale_grad(grad, upstream))
    elif n := grad.numel():
        with on_device(grad.device):
            programs = min(-(-n // _SCALE_BLOCK), _SCALE_PROGRAMS)
            arguments = grad, upstream, n, programs
            kernel = kernels.scale_in_place_kernel
            launch(kernel, programs, grad.device, *arguments, BLOCK=_SCALE_BLOCK, num_warps=8)
