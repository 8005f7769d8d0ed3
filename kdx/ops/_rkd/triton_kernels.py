"""The Triton kernels of the relational losses; triton.py launches them.

Squared distances of a block of the pair grid are a matrix ``S[k, j]`` in float32, student and teacher alike. A
block is `symmetric` when its rows and columns are the same points; then only tiles on or above the diagonal are
computed, the others are mirrored, and a tile off the diagonal counts twice in every sum. All sums run in a fixed
order.
"""

# mypy: ignore-errors
# (kernels are compiled by Triton: their arguments have no Python types)

from __future__ import annotations

import triton
import triton.language as tl

from kdx.ops._pairwise_sq_dist.triton_kernels import square_tile, store_square

# Below the smallest normal number a squared distance counts as that of exact duplicates (comparisons keep NaN).
SMALLEST = tl.constexpr(2.0**-126)


@triton.jit
def _inverse_root(s):
    # A step of Newton's method brings the approximation to the last digit without the slow paths of a rounded root and
    # a division, which would be most of the angle kernel.
    y = tl.rsqrt(tl.where(s < SMALLEST, 1.0, s))
    return tl.where(s < SMALLEST, 0.0, y + 0.5 * y * (1.0 - s * y * y))


@triton.jit
def _root(s):
    return tl.where(s < SMALLEST, 0.0, tl.sqrt_rn(s))


@triton.jit
def _clamp(z, delta):
    return tl.minimum(tl.maximum(z, -delta), delta)  # may swallow a NaN; what is made of it adds 0 z or 0 loss


@triton.jit
def _sum(tile):
    return tl.sum(tl.sum(tile, axis=1), axis=0)


@triton.jit
def measure(  # noqa: PLR0917  # kernels take pointers, sizes and strides
    student,  # [N, D_s]
    s_stride_n,
    s_stride_d,
    s_depth,
    teacher,  # [N, D_t]
    t_stride_n,
    t_stride_d,
    t_depth,
    s_square,  # [ni, nj] out
    t_square,  # [ni, nj] out
    sums,  # [4, programs] out: sum and number of positive distances, student and teacher
    i0,
    ni,
    j0,
    nj,
    SYMMETRIC: tl.constexpr,
    SUMS: tl.constexpr,
    TILE: tl.constexpr,
    BD: tl.constexpr,
):
    """Squared distances of the points i0.. to the points j0.., and the sums of the distances."""
    pi, pj = tl.program_id(1), tl.program_id(0)
    program = pi * tl.num_programs(0) + pj
    programs = tl.num_programs(0) * tl.num_programs(1)
    li, lj = pi * TILE + tl.arange(0, TILE), pj * TILE + tl.arange(0, TILE)
    skip = SYMMETRIC and pi > pj
    if not skip:
        mirror = SYMMETRIC and pi < pj
        i, j, i_end, j_end = i0 + li, j0 + lj, i0 + ni, j0 + nj
        s = square_tile(
            student, s_stride_n, s_stride_d, student, s_stride_n, s_stride_d, i, j, i_end, j_end, s_depth, BD
        )
        store_square(s_square, s, li, lj, ni, nj, mirror)
        t = square_tile(
            teacher, t_stride_n, t_stride_d, teacher, t_stride_n, t_stride_d, i, j, i_end, j_end, t_depth, BD
        )
        store_square(t_square, t, li, lj, ni, nj, mirror)
        if SUMS:
            times = tl.where(mirror, 2.0, 1.0)
            tl.store(sums + program, times * _sum(_root(s)))
            tl.store(sums + programs + program, times * _sum(tl.where(s < SMALLEST, 0.0, 1.0)))
            tl.store(sums + 2 * programs + program, times * _sum(_root(t)))
            tl.store(sums + 3 * programs + program, times * _sum(tl.where(t < SMALLEST, 0.0, 1.0)))
    elif SUMS:
        for row in tl.static_range(4):
            tl.store(sums + row * programs + program, 0.0)


@triton.jit
def _total(part, count, BLOCK: tl.constexpr):
    """The sum of ``part[:count]``, in the same order in every program."""
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        acc += tl.load(part + at, mask=at < count, other=0.0)
    return tl.sum(acc, axis=0)


@triton.jit
def _inverse_mean(part, count, BLOCK: tl.constexpr):
    total = _total(part, count, BLOCK)
    number = _total(part + count, count, BLOCK)
    return tl.where(number == 0.0, 0.0, number / tl.where(number == 0.0, 1.0, total)), number


@triton.jit
def distance_sums(
    s_square,  # [size]
    t_square,  # [size]
    size,
    s_means,  # [2, counts]: sum and number of the student's positive distances, in parts
    t_means,  # [2, counts]
    counts,
    out,  # [2, programs]: Huber's loss, and B = sum psi d
    delta,
    PER_PROGRAM,
    BLOCK: tl.constexpr,
):
    """The distance loss and B over all entries of a block, each program a fixed range of them."""
    program = tl.program_id(0)
    inv_mu, _ = _inverse_mean(s_means, counts, BLOCK)
    inv_nu, _ = _inverse_mean(t_means, counts, BLOCK)
    loss = tl.zeros((BLOCK,), dtype=tl.float32)
    b = tl.zeros((BLOCK,), dtype=tl.float32)
    first = program.to(tl.int64) * PER_PROGRAM
    for start in range(0, PER_PROGRAM, BLOCK):
        at = first + start + tl.arange(0, BLOCK)
        inside = at < size
        d = _root(tl.load(s_square + at, mask=inside, other=0.0))
        z = d * inv_mu - _root(tl.load(t_square + at, mask=inside, other=0.0)) * inv_nu
        psi = _clamp(z, delta)
        loss += psi * (z - 0.5 * psi)
        b += psi * d
    tl.store(out + program, tl.sum(loss, axis=0))
    tl.store(out + tl.num_programs(0) + program, tl.sum(b, axis=0))


@triton.jit
def angle(  # noqa: PLR0917  # kernels take pointers, sizes and strides
    s_i,  # [N, ni] squared distances of every point k to the points i0..
    t_i,
    s_j,  # [N, nj] ... to the points j0..
    t_j,
    v,  # [ni, nj] out: scale * N^3 V
    losses,  # [programs] out
    n,
    i0,
    ni,
    j0,
    nj,
    delta,
    scale,
    SYMMETRIC: tl.constexpr,
    GRAD: tl.constexpr,
    TILE: tl.constexpr,
):
    """A tile of pairs (i, j) against every k: Huber's loss of the angle at k, and dL/dS_ij. README.md has the maths."""
    pi, pj = tl.program_id(1), tl.program_id(0)
    program = pi * tl.num_programs(0) + pj
    li, lj = pi * TILE + tl.arange(0, TILE), pj * TILE + tl.arange(0, TILE)
    i_in, j_in = li < ni, lj < nj
    skip = SYMMETRIC and pi > pj
    loss = tl.zeros((TILE, TILE), dtype=tl.float32)
    if not skip:
        inside = i_in[:, None] & j_in[None, :]
        edge = (i0 + li).to(tl.int64)[:, None] * nj + lj[None, :]
        c_s = tl.load(s_j + edge, mask=inside, other=0.0)
        c_t = tl.load(t_j + edge, mask=inside, other=0.0)
        e_s, e_t = _inverse_root(c_s), _inverse_root(c_t)
        h_s, h_t = 0.5 * c_s, 0.5 * c_t
        p = tl.zeros((TILE, TILE), dtype=tl.float32)
        q = tl.zeros((TILE, TILE), dtype=tl.float32)
        r = tl.zeros((TILE, TILE), dtype=tl.float32)
        at_s_i, at_t_i, at_s_j, at_t_j = s_i + li, t_i + li, s_j + lj, t_j + lj
        for _ in range(0, n):
            a_s = tl.load(at_s_i, mask=i_in, other=0.0)
            a_t = tl.load(at_t_i, mask=i_in, other=0.0)
            b_s = tl.load(at_s_j, mask=j_in, other=0.0)
            b_t = tl.load(at_t_j, mask=j_in, other=0.0)
            at_s_i += ni
            at_t_i += ni
            at_s_j += nj
            at_t_j += nj
            ra_s, ra_t = _inverse_root(a_s)[:, None], _inverse_root(a_t)[:, None]
            rb_s, rb_t = _inverse_root(b_s)[None, :], _inverse_root(b_t)[None, :]
            a_s, a_t, b_s, b_t = 0.5 * a_s[:, None], 0.5 * a_t[:, None], 0.5 * b_s[None, :], 0.5 * b_t[None, :]
            rr_s, rr_t = ra_s * rb_s, ra_t * rb_t
            z_k = ((a_s - h_s) + b_s) * rr_s - ((a_t - h_t) + b_t) * rr_t
            psi_k = _clamp(z_k, delta)
            loss += psi_k * (z_k - 0.5 * psi_k)
            if GRAD:
                gap_s, gap_t = a_s - b_s, a_t - b_t
                at_i, at_j = (h_s + gap_s) * ra_s, (h_s - gap_s) * rb_s
                psi_i = _clamp(e_s * at_i - e_t * ((h_t + gap_t) * ra_t), delta)
                psi_j = _clamp(e_s * at_j - e_t * ((h_t - gap_t) * rb_t), delta)
                p += psi_i * ra_s
                p += psi_j * rb_s
                q += psi_i * at_i
                q += psi_j * at_j
                r += psi_k * rr_s
        if GRAD:
            value = tl.where(e_s == 0.0, 0.0, scale * (e_s * (p - e_s * e_s * q) - r) + 0.0 * loss)
            store_square(v, value, li, lj, ni, nj, SYMMETRIC and pi < pj)
    times = tl.where(SYMMETRIC and pi < pj, 2.0, 1.0)
    tl.store(losses + program, times * _sum(loss))


@triton.jit
def gradient(  # noqa: PLR0917  # kernels take pointers, sizes and strides
    s_square,  # [ni, nj] with strides
    t_square,
    v_angle,
    stride_i,
    stride_j,
    x,  # [N, D]
    stride_n,
    stride_d,
    depth,
    out,  # [N, D] float32, contiguous
    i0,
    ni,
    j0,
    nj,
    s_means,  # [2, counts]
    t_means,
    counts,
    sums,  # [2, programs of distance_sums]
    sum_count,
    angle_losses,
    angle_count,
    loss,  # [1] out
    delta,
    pairs,  # N^2
    distance_weight,
    angle_scale,  # angle_weight / N^3
    DISTANCE: tl.constexpr,
    ANGLE: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    LOSS: tl.constexpr,
    TI: tl.constexpr,
    TJ: tl.constexpr,
    BD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows i0.. of ``2 (diag(V 1) - V) X`` over the columns j0.., V of the distances made on the way; and the loss."""
    li = tl.program_id(0) * TI + tl.arange(0, TI)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    i_in, d_in = li < ni, d < depth
    inv_mu, inv_nu, shift, scale = 0.0, 0.0, 0.0, 0.0
    if DISTANCE:
        inv_mu, number = _inverse_mean(s_means, counts, BLOCK)
        inv_nu, _ = _inverse_mean(t_means, counts, BLOCK)
        b = _total(sums + sum_count, sum_count, BLOCK)
        shift = b * inv_mu / tl.where(number == 0.0, 1.0, number)
        scale = distance_weight * inv_mu / pairs
    # Distances do not change when all points move: with the first point as the origin a common offset costs no
    # digits.
    origin = tl.load(x + d * stride_d, mask=d_in, other=0.0).to(tl.float32)
    product = tl.zeros((TI, BD), dtype=tl.float32)
    degree = tl.zeros((TI,), dtype=tl.float32)
    for start in range(0, nj, TJ):
        lj = start + tl.arange(0, TJ)
        j_in = lj < nj
        inside = i_in[:, None] & j_in[None, :]
        at = li.to(tl.int64)[:, None] * stride_i + lj.to(tl.int64)[None, :] * stride_j
        weight = tl.zeros((TI, TJ), dtype=tl.float32)
        if ANGLE:
            weight += tl.load(v_angle + at, mask=inside, other=0.0)
        if DISTANCE:
            dist = _root(tl.load(s_square + at, mask=inside, other=0.0))
            z = dist * inv_mu - _root(tl.load(t_square + at, mask=inside, other=0.0)) * inv_nu
            value = scale * (_clamp(z, delta) - shift + 0.0 * z) / tl.where(dist == 0.0, 1.0, dist)
            weight += tl.where(dist == 0.0, 0.0, value)
        rows = tl.load(
            x + (j0 + lj).to(tl.int64)[:, None] * stride_n + d[None, :] * stride_d,
            mask=j_in[:, None] & d_in[None, :],
            other=0.0,
        ).to(tl.float32)
        rows = tl.where(j_in[:, None], rows - origin[None, :], 0.0)
        product = tl.dot(weight, rows, product, input_precision="ieee")
        degree += tl.sum(weight, axis=1)
    own = tl.load(
        x + (i0 + li).to(tl.int64)[:, None] * stride_n + d[None, :] * stride_d,
        mask=i_in[:, None] & d_in[None, :],
        other=0.0,
    ).to(tl.float32)
    value = 2.0 * (degree[:, None] * (own - origin[None, :]) - product)
    to = out + (i0 + li).to(tl.int64)[:, None] * depth + d[None, :]
    mask = i_in[:, None] & d_in[None, :]
    if ACCUMULATE:
        value += tl.load(to, mask=mask, other=0.0)
    tl.store(to, value, mask=mask)
    if LOSS and tl.program_id(0) == 0 and tl.program_id(1) == 0:
        result = 0.0
        if DISTANCE:
            result += distance_weight * (_total(sums, sum_count, BLOCK) / pairs)
        if ANGLE:
            result += angle_scale * _total(angle_losses, angle_count, BLOCK)
        tl.store(loss, result)
