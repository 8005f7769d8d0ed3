"""The Triton kernel of the squared distances, and its two halves, which the relational losses use as well."""

# mypy: ignore-errors
# (kernels are compiled by Triton: their arguments have no Python types)

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def square_tile(x, x_n, x_d, y, y_n, y_d, i, j, i_end, j_end, depth, BD: tl.constexpr):
    """``|x_i - y_j|^2`` for the points ``i`` and ``j`` by direct differences; 0 where one is past its end."""
    total = tl.zeros((i.shape[0], j.shape[0]), dtype=tl.float32)
    at_x, at_y = x + i.to(tl.int64) * x_n, y + j.to(tl.int64) * y_n
    # Runs of BD coordinates are summed by themselves and then added: a long sum would cost the digits that the law of
    # cosines needs for points that nearly touch.
    for d0 in range(0, depth, BD):
        run = tl.zeros((i.shape[0], j.shape[0]), dtype=tl.float32)
        for d in tl.static_range(BD):
            d_in = d0 + d < depth
            a = tl.load(at_x + (d0 + d) * x_d, mask=(i < i_end) & d_in, other=0.0).to(tl.float32)
            b = tl.load(at_y + (d0 + d) * y_d, mask=(j < j_end) & d_in, other=0.0).to(tl.float32)
            difference = a[:, None] - b[None, :]
            run += difference * difference
        total += run
    return tl.where((i < i_end)[:, None] & (j < j_end)[None, :], total, 0.0)


@triton.jit
def store_square(out, s, li, lj, ni, nj, mirror):
    """Write a tile, and where ``mirror`` is set its transpose on the other side of the diagonal."""
    inside = (li < ni)[:, None] & (lj < nj)[None, :]
    tl.store(out + li.to(tl.int64)[:, None] * nj + lj[None, :], s, mask=inside)
    if mirror:
        tl.store(out + lj.to(tl.int64)[:, None] * nj + li[None, :], tl.trans(s), mask=tl.trans(inside))


@triton.jit
def square_distances(
    x,  # [N, D]
    x_n,
    x_d,
    y,  # [M, D]
    y_n,
    y_d,
    depth,
    out,  # [N, M]
    n,
    m,
    TILE: tl.constexpr,
    BD: tl.constexpr,
):
    """Squared distances of two sets of points."""
    i, j = tl.program_id(1) * TILE + tl.arange(0, TILE), tl.program_id(0) * TILE + tl.arange(0, TILE)
    store_square(out, square_tile(x, x_n, x_d, y, y_n, y_d, i, j, n, m, depth, BD), i, j, n, m, False)
