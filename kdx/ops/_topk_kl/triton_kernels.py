"""The Triton kernels of topk_kl, one program a row; triton.py launches them, sweeps.py says what they compute.

The listed classes of a row come in ascending order, so that each is met once while the row is gone through in tiles.
"""

# Triton kernels take many positional arguments and are annotated by what the compiler wants.
# ruff: noqa: PLR0917, PLR0124
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc, no-any-return"

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LOG_2 = tl.constexpr(0.6931471805599453)
INF = tl.constexpr(float("inf"))


@triton.jit
def _finite(m):
    return tl.where(m == -INF, 0.0, m)


@triton.jit
def _followed(m, total, z, exponent):
    """Maximum and sum of exponentials under it, with a tile more."""
    top = tl.maximum(m, tl.max(z, 0))
    base = _finite(top)
    return top, total * tl.exp2((m - base) * exponent) + tl.sum(tl.exp2((z - base) * exponent), 0)


@triton.jit
def sums_kernel(
    student, ids, counts, few, total_1, K, C, row_stride, temperature, exponent,
    BLOCK: tl.constexpr, K_BLOCK: tl.constexpr, WITHOUT: tl.constexpr, AT_1: tl.constexpr,
):  # fmt: skip
    """few[row] = the logits of the listed classes, then T logsumexp(z / T); total_1[row] = logsumexp(z)."""
    row = tl.program_id(0).to(tl.int64)
    live = tl.load(counts + row) != 0
    z_row, id_row, few_row = student + row * row_stride, ids + row * K, few + row * (K + 1)
    m = -INF
    total = 0.0
    m_1 = -INF
    sum_1 = 0.0
    k = 0
    place = tl.load(id_row)
    tiles = tl.where(live, tl.cdiv(C, BLOCK), 0)
    for tile in range(0, tiles):
        columns = tile * BLOCK + tl.arange(0, BLOCK)
        z = tl.load(z_row + columns, mask=columns < C, other=-INF).to(tl.float32)
        if AT_1:
            m_1, sum_1 = _followed(m_1, sum_1, z, LOG2E)
        if WITHOUT:
            while (k < K) & (place < (tile + 1) * BLOCK):
                z = tl.where(columns == place, -INF, z)
                k += 1
                place = tl.load(id_row + tl.minimum(k, K - 1))
        m, total = _followed(m, total, z, exponent)
    for first in range(0, K, K_BLOCK):
        at = first + tl.arange(0, K_BLOCK)
        place_k = tl.load(id_row + at, mask=at < K, other=-1)
        there = (place_k >= 0) & (place_k < C) & live
        z_k = tl.load(z_row + tl.where(there, place_k, 0), mask=there, other=-INF).to(tl.float32)
        z_k = tl.where(place_k >= C, float("nan"), z_k)
        tl.store(few_row + at, tl.where(live, z_k, 0.0), mask=at < K)
    log_total = temperature * (tl.log2(total) * LOG_2)
    tl.store(few_row + K, tl.where(live, tl.where(total == 0.0, -INF, m + log_total), 0.0))
    if AT_1:
        tl.store(total_1 + row, tl.where(live, m_1 + tl.log2(sum_1) * LOG_2, 0.0))


@triton.jit
def gradient_kernel(
    student, ids, counts, grad, add, rest, total, ce_rows, total_1, labels, K, C, row_stride, exponent,
    BLOCK: tl.constexpr, WITHOUT: tl.constexpr, CE: tl.constexpr,
):  # fmt: skip
    """A row of the gradient, see sweeps.py."""
    row = tl.program_id(0).to(tl.int64)
    live = tl.load(counts + row) != 0
    z_row, g_row, id_row, add_row = student + row * row_stride, grad + row * C, ids + row * K, add + row * K
    factor, under = tl.load(rest + row), tl.load(total + row)
    ce = 0.0
    under_1 = 0.0
    label = 0
    if CE:
        ce = tl.load(ce_rows + row)
        under_1 = tl.load(total_1 + row)
        label = tl.load(labels + row)
    k = 0
    place = tl.load(id_row)
    for tile in range(0, tl.cdiv(C, BLOCK)):
        columns = tile * BLOCK + tl.arange(0, BLOCK)
        z = tl.load(z_row + columns, mask=(columns < C) & live, other=-INF).to(tl.float32)
        # Of a class that the student does not have there is nothing, also where no other class is left.
        g = tl.where(z == -INF, 0.0, factor * tl.exp2((z - under) * exponent))
        if not WITHOUT:
            g = tl.where(under != under, under, g)
        while (k < K) & (place < (tile + 1) * BLOCK):
            more = tl.load(add_row + k)
            g = tl.where(columns == place, more if WITHOUT else g + more, g)
            k += 1
            place = tl.load(id_row + tl.minimum(k, K - 1))
        if CE:
            cross = ce * (tl.exp2((z - under_1) * LOG2E) - tl.where(columns == label, 1.0, 0.0))
            g = tl.where(ce != 0.0, g + cross, g)
        g = tl.where(live, g, 0.0)
        tl.store(g_row + columns, g.to(grad.dtype.element_ty), mask=columns < C)
