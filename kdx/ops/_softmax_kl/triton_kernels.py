"""The Triton kernels of softmax_kl; triton.py chooses and launches them, README.md "GPU kernels" says why they look so.

Tiles are ``[ROWS, BLOCK]``, per-row values ``[ROWS]``. Classes outside a row read as -inf on both sides, which add
nothing to any sum. A row's statistics are ``(m_s, m_t, l_s, l_t, gap, l_1)`` as in csrc/cuda/softmax_kl_terms.cuh:
maxima of the raw logits, sums of exponentials under them, ``gap = sum exp((t - m_t) / T) - exp((s - m_s) / T)`` without
cancellation, and the sum at temperature 1.
"""

# Triton kernels take many positional arguments, are annotated by what the compiler wants, and spell out comparisons
# that Python could shorten.
# ruff: noqa: PLR0915, PLR0917, PLR1714, PLR0124, SIM109
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc, no-any-return"

from __future__ import annotations

import triton
import triton.language as tl

FORWARD = tl.constexpr(0)
REVERSE = tl.constexpr(1)
JSD = tl.constexpr(2)
SKEW_FORWARD = tl.constexpr(3)
SKEW_REVERSE = tl.constexpr(4)
LOG2E = tl.constexpr(1.4426950408889634)
SMALL = tl.constexpr(0.35)  # where `_series` holds and differences of exponentials do not
INF = tl.constexpr(float("inf"))

# What loop_kernel does of a row: everything; or, for rows cut into splits, the statistics, the loss (with the gradient
# where that needs no total of the row), and the gradient of the divergences that do.
ALL = tl.constexpr(0)
STATISTICS = tl.constexpr(1)
LOSS = tl.constexpr(2)
GRADIENT = tl.constexpr(3)


@triton.jit
def _series(d):  # (expm1(d) - d) / d^2, interpolated in |d| < 0.35 to 5e-8
    return (((0.0013926919 * d + 0.008363767) * d + 0.04166655) * d + 0.16666573) * d + 0.5


@triton.jit
def _finite(m):
    return tl.where(m == -INF, 0.0, m)


@triton.jit
def _log1p(x):
    z = x / (2.0 + x)  # log1p(x) = 2 atanh(z), |z| <= 1/3
    y = z * z
    a = ((((0.1333333 * y + 0.1538462) * y + 0.1818182) * y + 0.2222222) * y + 0.2857143) * y + 0.4
    close = z * (2.0 + y * (0.6666667 + y * a))
    return tl.where(tl.abs(x) <= 0.5, close, tl.log(1.0 + x))


@triton.jit
def _apart(z_s, z_t, inverse):
    """Whether maxima are so far apart (16 T) that t - s loses digits which the losses need; false for inf and NaN."""
    return (tl.abs(z_s) < INF) & (tl.abs(z_t) < INF) & (tl.abs(z_t - z_s) * inverse > 16.0)


@triton.jit
def _log_ratio(s, t, a, b, z_s, z_t, inverse, NARROW: tl.constexpr):
    """``((t - s) - (z_t - z_s)) / T``, given the distances a = s - z_s and b = t - z_t to the maxima.

    From the distances for logits of 16 bits, for which they are exact, and where the maxima lie apart.
    """
    if NARROW:
        return (b - a) * inverse
    apart = _apart(z_s, z_t, inverse)
    return tl.where(apart[:, None], b - a, (t - s) - (z_t - z_s)[:, None]) * inverse


@triton.jit
def _tile_statistics(s, t, inverse, exponent, LABELS: tl.constexpr, NARROW: tl.constexpr):
    m_s, m_t = tl.max(s, 1), tl.max(t, 1)
    z_s, z_t = _finite(m_s), _finite(m_t)
    a, b = s - z_s[:, None], t - z_t[:, None]
    e_s, e_t = tl.exp2(a * exponent), tl.exp2(b * exponent)
    d = _log_ratio(s, t, a, b, z_s, z_t, inverse, NARROW)
    gap = tl.where(tl.abs(d) < SMALL, (e_s * d) * (1.0 + d * _series(d)), e_t - e_s)  # d is NaN where both are -inf
    l_1 = tl.zeros_like(m_s)
    if LABELS:
        l_1 = tl.sum(tl.exp2(a * LOG2E), 1)
    return m_s, m_t, tl.sum(e_s, 1), tl.sum(e_t, 1), tl.sum(gap, 1), l_1


@triton.jit
def _rebase(m_s, m_t, l_s, l_t, gap, l_1, to_s, to_t, inverse, exponent):
    z_s, z_t = _finite(to_s), _finite(to_t)
    a, b = tl.exp2((m_s - z_s) * exponent), tl.exp2((m_t - z_t) * exponent)
    apart = _apart(z_s, z_t, inverse)
    d = tl.where(apart, (m_t - z_t) - (m_s - z_s), (m_t - m_s) - (z_t - z_s)) * inverse
    gap = tl.where(tl.abs(d) < SMALL, a * (gap + l_t * (d * (1.0 + d * _series(d)))), b * l_t - a * l_s)
    return a * l_s, b * l_t, gap, l_1 * tl.exp2((m_s - z_s) * LOG2E)


@triton.jit
def _solve(m_s, m_t, l_s, l_t, gap, l_1, LABELS: tl.constexpr):
    ratio = gap / l_s
    log_ratio = tl.where(tl.abs(ratio) < 0.5, _log1p(ratio), tl.log(l_t / l_s))
    z_s, z_t = _finite(m_s), _finite(m_t)
    log_1 = z_s
    if LABELS:
        log_1 = tl.log(l_1)
    return z_s, z_t, log_ratio, 1.0 / l_s, 1.0 / l_t, 1.0 / l_1, log_1


@triton.jit
def _terms(
    s, t, z_s, z_t, log_ratio, inv_s, inv_t, inverse, exponent, beta, DIVERGENCE: tl.constexpr, NARROW: tl.constexpr
):
    """Of each class: share of the loss, p - q, q, slope and part; gradient = q (slope - sum of part), not FORWARD's."""
    a, b = s - z_s[:, None], t - z_t[:, None]
    q = tl.exp2(a * exponent) * inv_s[:, None]
    p = tl.exp2(b * exponent) * inv_t[:, None]
    d = _log_ratio(s, t, a, b, z_s, z_t, inverse, NARROW) - log_ratio[:, None]
    if DIVERGENCE == FORWARD or DIVERGENCE == REVERSE:
        r = _series(d)
        one_r = 1.0 + d * r
        q_d = q * d
        small = tl.abs(d) < SMALL
        difference = tl.where(small, q_d * one_r, p - q)
        if DIVERGENCE == FORWARD:
            share = tl.where(small, (q_d * d) * (one_r - r), tl.where(p == 0.0, 0.0, p * d) - difference)
        else:
            share = tl.where(small, (q_d * d) * r, difference - tl.where(q == 0.0, 0.0, q_d))
        return share, difference, q, -d, share
    else:
        d = tl.where((p == 0.0) & (q == 0.0), 0.0, d)
        up = d > 0.0
        e = -tl.abs(d)
        a = tl.where(e > -SMALL, e * (1.0 + e * _series(e)), tl.exp2(e * LOG2E) - 1.0)
        difference = tl.where(up, -p * a, q * a)
        y = tl.where(up, 1.0 - beta, beta) * a
        c = _log1p(y)
        u = tl.where(up, d + c, c)  # log(m / q)
        w = tl.where(up, c, c - d)  # log(m / p)
        of_q = beta * difference - tl.where(q == 0.0, 0.0, q * u)
        of_p = (beta - 1.0) * difference - tl.where(p == 0.0, 0.0, p * w)
        of_q = tl.where(tl.abs(u) < SMALL, q * (u * u) * _series(u), of_q)
        of_p = tl.where(tl.abs(w) < SMALL, p * (w * w) * _series(w), of_p)
        x = (1.0 - beta) * (tl.where(up, -a, a) / (1.0 + y))  # (1 - beta) (p - q) / m
        if DIVERGENCE == SKEW_FORWARD:
            return of_p, difference, q, -x, beta * difference * x
        if DIVERGENCE == SKEW_REVERSE:
            return of_q, difference, q, beta * x - u, of_q - beta * beta * difference * x
        return beta * of_p + (1.0 - beta) * of_q, difference, q, -u, of_q


@triton.jit
def _coefficients(
    rows, inside, kl_rows, labels, ce_rows, kl_scale, ce_scale, C, KL_ROWS: tl.constexpr, LABELS: tl.constexpr
):
    kl = tl.where(inside, kl_scale, 0.0)
    ce = tl.zeros_like(kl)
    label = tl.zeros_like(rows) - 1
    if KL_ROWS:
        kl = kl_scale * tl.load(kl_rows + rows, mask=inside, other=0.0)
    if LABELS:
        ce = ce_scale * tl.load(ce_rows + rows, mask=inside, other=0.0)
        label = tl.load(labels + rows, mask=inside & (ce != 0.0), other=-1)
        ce = tl.where((ce != 0.0) & ((label < 0) | (label >= C)), float("nan"), ce)  # never an address before this
    return kl, ce, label


@triton.jit
def _load(base, offset, columns, step, C, live, STEP_ONE: tl.constexpr):
    """Classes ``columns`` of rows that start at ``base + offset``, -inf outside of them, in fp32."""
    at = columns[None, :].to(tl.int64)
    if not STEP_ONE:
        at = at * step
    mask = live[:, None] & (columns < C)[None, :]
    return tl.load(base + offset[:, None] + at, mask=mask, other=-INF).to(tl.float32)


@triton.jit
def _load_pair(
    student, teacher, s_at, t_at, columns, s_step, t_step, C, live, kl,
    STAND_IN: tl.constexpr, S1: tl.constexpr, T1: tl.constexpr,
):  # fmt: skip
    s = _load(student, s_at, columns, s_step, C, live, S1)
    if not STAND_IN:
        return s, _load(teacher, t_at, columns, t_step, C, live, T1)
    # In a row without a KL the student stands in for the teacher: it differs from itself by nothing.
    t = _load(teacher, t_at, columns, t_step, C, live & (kl != 0.0), T1)
    return s, tl.where((kl != 0.0)[:, None], t, s)


@triton.jit
def _store_gradient(
    grad, g_at, columns, g_step, C, inside, live, s, g, z_s, inv_1, ce, label, LABELS: tl.constexpr, G1: tl.constexpr
):
    if LABELS:
        e = tl.exp2((s - z_s[:, None]) * LOG2E) * inv_1[:, None]
        cross = ce[:, None] * (e - tl.where(columns[None, :] == label[:, None], 1.0, 0.0))
        g = tl.where((ce != 0.0)[:, None], g + cross, g)
    g = tl.where(live[:, None], g, 0.0)
    at = columns[None, :].to(tl.int64)
    if not G1:
        at = at * g_step
    mask = inside[:, None] & (columns < C)[None, :]
    tl.store(grad + g_at[:, None] + at, g.to(grad.dtype.element_ty), mask=mask)


@triton.jit
def _deliver(value, rows, inside, loss, partial, ticket, part, parts, REDUCE: tl.constexpr):
    """Store the rows' losses, or add them up: the last program to come sums all shares, always in the same order."""
    if REDUCE:
        tl.store(partial + part, tl.sum(tl.where(inside, value, 0.0), 0))
        tl.debug_barrier()
        if tl.atomic_add(ticket, 1, sem="acq_rel") == parts - 1:
            tl.debug_barrier()
            sums = tl.zeros([1024], tl.float32)
            for block in range(0, tl.cdiv(parts, 1024)):
                index = block * 1024 + tl.arange(0, 1024)
                sums += tl.load(partial + index, mask=index < parts, other=0.0, cache_modifier=".cg")
            tl.store(loss, tl.sum(sums, 0))
            tl.store(ticket, 0)  # ready for the next launch
    else:
        tl.store(loss + rows, value, mask=inside)


@triton.jit
def _row_loss(
    share, kl, ce, live, student, s_at, label, s_step, C, log_1, z_s, rows, ce_losses,
    LABELS: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """The rows' losses; where APART without the cross-entropies, which go to ``ce_losses``."""
    value = kl * tl.where(share < 0.0, 0.0, share)  # a probability flushed to zero beside one that is not: -1e-38
    if LABELS:
        valid = live & (ce == ce) & (ce != 0.0)
        s_y = tl.load(student + s_at + label * s_step, mask=valid, other=0.0).to(tl.float32)
        of_ce = ce * (log_1 + (z_s - s_y))
        if APART:
            tl.store(ce_losses + rows, of_ce, mask=live & (ce != 0.0))
        else:
            value = tl.where(ce != 0.0, value + of_ce, value)
    return tl.where(live, value, 0.0)


_VARYING = ["rows_inner", "tiles", "programs", "chunks", "split_tiles"]  # one compiled kernel serves every batch size


@triton.jit(do_not_specialize=_VARYING)
def resident_kernel(
    student, teacher, grad, loss, partial, ticket, kl_rows, labels, ce_rows, ce_losses,
    rows_inner, tiles, programs, chunks, s_o, s_i, s_step, t_o, t_i, t_step, g_o, g_i, g_step,
    inverse, exponent, beta, kl_scale, ce_scale,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PACK: tl.constexpr, DIVERGENCE: tl.constexpr, KL_ROWS: tl.constexpr,
    LABELS: tl.constexpr, GRAD: tl.constexpr, REDUCE: tl.constexpr,
    APART: tl.constexpr, STAND_IN: tl.constexpr, S1: tl.constexpr, T1: tl.constexpr, G1: tl.constexpr,
):  # fmt: skip
    """ROWS whole rows a program, read once and kept in registers."""
    NARROW: tl.constexpr = student.dtype.element_ty.primitive_bitwidth == 16
    program = tl.program_id(0)
    outer = (program // tiles).to(tl.int64)
    inner = (program % tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = inner < rows_inner
    rows = outer * rows_inner + inner
    C = chunks * PACK  # C and the strides come in units of PACK, so that the compiler sees how rows are aligned
    columns = tl.arange(0, BLOCK)
    s_at, t_at = (outer * s_o + inner * s_i) * PACK, (outer * t_o + inner * t_i) * PACK

    kl, ce, label = _coefficients(rows, inside, kl_rows, labels, ce_rows, kl_scale, ce_scale, C, KL_ROWS, LABELS)
    live = inside & ((kl != 0.0) | (ce != 0.0))
    s, t = _load_pair(student, teacher, s_at, t_at, columns, s_step, t_step, C, live, kl, STAND_IN, S1, T1)
    m_s, m_t, l_s, l_t, gap, l_1 = _tile_statistics(s, t, inverse, exponent, LABELS, NARROW)
    z_s, z_t, log_ratio, inv_s, inv_t, inv_1, log_1 = _solve(m_s, m_t, l_s, l_t, gap, l_1, LABELS)
    share, difference, q, slope, part = _terms(
        s, t, z_s, z_t, log_ratio, inv_s, inv_t, inverse, exponent, beta, DIVERGENCE, NARROW
    )
    if GRAD:
        scale = kl * inverse
        if DIVERGENCE == FORWARD:
            g = -scale[:, None] * difference
        else:
            total = tl.sum(part, 1)
            if DIVERGENCE == JSD or DIVERGENCE == SKEW_FORWARD:
                scale = scale * (1.0 - beta)
            g = scale[:, None] * q * (tl.where(q == 0.0, 0.0, slope) - total[:, None])
        g_at = (outer * g_o + inner * g_i) * PACK
        _store_gradient(grad, g_at, columns, g_step, C, inside, live, s, g, z_s, inv_1, ce, label, LABELS, G1)
    value = _row_loss(
        tl.sum(share, 1), kl, ce, live, student, s_at, label, s_step, C, log_1, z_s, rows, ce_losses, LABELS, APART
    )
    _deliver(value, rows, inside, loss, partial, ticket, program, programs, REDUCE)


@triton.jit(do_not_specialize=_VARYING)
def loop_kernel(
    student, teacher, grad, loss, partial, ticket, kl_rows, labels, ce_rows, ce_losses, statistics, totals,
    rows_inner, programs, chunks, split_tiles, s_o, s_i, s_step, t_o, t_i, t_step, g_o, g_i, g_step,
    inverse, exponent, beta, kl_scale, ce_scale,
    PHASE: tl.constexpr, SPLITS: tl.constexpr, SPLITS_2: tl.constexpr, BLOCK: tl.constexpr, PACK: tl.constexpr,
    DIVERGENCE: tl.constexpr, KL_ROWS: tl.constexpr, LABELS: tl.constexpr, GRAD: tl.constexpr, REDUCE: tl.constexpr,
    APART: tl.constexpr, STAND_IN: tl.constexpr, S1: tl.constexpr, T1: tl.constexpr, G1: tl.constexpr,
):  # fmt: skip
    """One row, or one of SPLITS parts of one (program = row * SPLITS + split), in tiles of BLOCK classes.

    statistics: [rows, SPLITS, 6]; totals: [rows, SPLITS], the splits' sums of part.
    """
    NARROW: tl.constexpr = student.dtype.element_ty.primitive_bitwidth == 16
    program = tl.program_id(0)
    row = (program // SPLITS).to(tl.int64)
    split = program % SPLITS
    one = tl.arange(0, 1)
    rows = row + one
    outer, inner = rows // rows_inner, rows % rows_inner
    inside = one == 0
    C = chunks * PACK
    begin = split * split_tiles * BLOCK
    tiles = tl.maximum(tl.minimum(split_tiles, tl.cdiv(C - begin, BLOCK)), 0)
    s_at, t_at = (outer * s_o + inner * s_i) * PACK, (outer * t_o + inner * t_i) * PACK
    g_at = (outer * g_o + inner * g_i) * PACK
    kl, ce, label = _coefficients(rows, inside, kl_rows, labels, ce_rows, kl_scale, ce_scale, C, KL_ROWS, LABELS)
    live = inside & ((kl != 0.0) | (ce != 0.0))

    if PHASE == ALL or PHASE == STATISTICS:
        m_s = tl.zeros([1], tl.float32) - INF
        m_t = tl.zeros([1], tl.float32) - INF
        l_s, l_t = tl.zeros([1], tl.float32), tl.zeros([1], tl.float32)
        gap, l_1 = tl.zeros([1], tl.float32), tl.zeros([1], tl.float32)
        for tile in range(0, tiles):
            columns = begin + tile * BLOCK + tl.arange(0, BLOCK)
            s, t = _load_pair(student, teacher, s_at, t_at, columns, s_step, t_step, C, live, kl, STAND_IN, S1, T1)
            n_s, n_t, k_s, k_t, k_gap, k_1 = _tile_statistics(s, t, inverse, exponent, LABELS, NARROW)
            to_s, to_t = tl.maximum(m_s, n_s), tl.maximum(m_t, n_t)
            l_s, l_t, gap, l_1 = _rebase(m_s, m_t, l_s, l_t, gap, l_1, to_s, to_t, inverse, exponent)
            k_s, k_t, k_gap, k_1 = _rebase(n_s, n_t, k_s, k_t, k_gap, k_1, to_s, to_t, inverse, exponent)
            m_s, m_t = to_s, to_t
            l_s, l_t, gap, l_1 = l_s + k_s, l_t + k_t, gap + k_gap, l_1 + k_1
        if PHASE == STATISTICS:
            to = statistics + program.to(tl.int64) * 6 + one
            tl.store(to, m_s)
            tl.store(to + 1, m_t)
            tl.store(to + 2, l_s)
            tl.store(to + 3, l_t)
            tl.store(to + 4, gap)
            tl.store(to + 5, l_1)
    else:
        splits = tl.arange(0, SPLITS_2)
        there = splits < SPLITS
        at = statistics + (row * SPLITS + splits) * 6
        p_s, p_t = tl.load(at, mask=there, other=-INF), tl.load(at + 1, mask=there, other=-INF)
        m_s, m_t = tl.max(p_s, 0) + tl.zeros([1], tl.float32), tl.max(p_t, 0) + tl.zeros([1], tl.float32)
        f_s, f_t, f_gap, f_1 = _rebase(
            p_s, p_t,
            tl.load(at + 2, mask=there, other=0.0), tl.load(at + 3, mask=there, other=0.0),
            tl.load(at + 4, mask=there, other=0.0), tl.load(at + 5, mask=there, other=0.0),
            tl.max(p_s, 0), tl.max(p_t, 0), inverse, exponent,
        )  # fmt: skip
        zero = tl.zeros([1], tl.float32)
        l_s, l_t, gap, l_1 = (
            tl.sum(f_s, 0) + zero,
            tl.sum(f_t, 0) + zero,
            tl.sum(f_gap, 0) + zero,
            tl.sum(f_1, 0) + zero,
        )

    if PHASE != STATISTICS:
        z_s, z_t, log_ratio, inv_s, inv_t, inv_1, log_1 = _solve(m_s, m_t, l_s, l_t, gap, l_1, LABELS)
        share_sum = tl.zeros([1], tl.float32)
        part_sum = tl.zeros([1], tl.float32)
        if PHASE != GRADIENT:
            for tile in range(0, tiles):  # backwards: the classes read last are still in the cache
                columns = begin + (tiles - 1 - tile) * BLOCK + tl.arange(0, BLOCK)
                s, t = _load_pair(student, teacher, s_at, t_at, columns, s_step, t_step, C, live, kl, STAND_IN, S1, T1)
                share, difference, q, slope, part = _terms(
                    s, t, z_s, z_t, log_ratio, inv_s, inv_t, inverse, exponent, beta, DIVERGENCE, NARROW
                )
                share_sum += tl.sum(share, 1)
                part_sum += tl.sum(part, 1)
                if GRAD and DIVERGENCE == FORWARD:
                    g = -(kl * inverse)[:, None] * difference
                    _store_gradient(
                        grad, g_at, columns, g_step, C, inside, live, s, g, z_s, inv_1, ce, label, LABELS, G1
                    )
            if PHASE == LOSS and DIVERGENCE != FORWARD:
                tl.store(totals + program + one, part_sum)
        if GRAD and DIVERGENCE != FORWARD and (PHASE == ALL or PHASE == GRADIENT):
            if PHASE == GRADIENT:
                index = tl.arange(0, SPLITS_2)
                part_sum += tl.sum(tl.load(totals + row * SPLITS + index, mask=index < SPLITS, other=0.0), 0)
            scale = kl * inverse
            if DIVERGENCE == JSD or DIVERGENCE == SKEW_FORWARD:
                scale = scale * (1.0 - beta)
            for tile in range(0, tiles):
                columns = begin + tile * BLOCK + tl.arange(0, BLOCK)
                s, t = _load_pair(student, teacher, s_at, t_at, columns, s_step, t_step, C, live, kl, STAND_IN, S1, T1)
                share, difference, q, slope, part = _terms(
                    s, t, z_s, z_t, log_ratio, inv_s, inv_t, inverse, exponent, beta, DIVERGENCE, NARROW
                )
                g = scale[:, None] * q * (tl.where(q == 0.0, 0.0, slope) - part_sum[:, None])
                _store_gradient(grad, g_at, columns, g_step, C, inside, live, s, g, z_s, inv_1, ce, label, LABELS, G1)
        if PHASE == ALL:
            value = _row_loss(
                share_sum, kl, ce, live, student, s_at, label, s_step, C, log_1, z_s, rows, ce_losses, LABELS, APART
            )
            _deliver(value, rows, inside, loss, partial, ticket, program, programs, REDUCE)
        if PHASE == LOSS:  # the cross-entropy of the row is the first split's
            first_ce = tl.where(split == 0, ce, 0.0)
            value = _row_loss(
                share_sum,
                kl,
                first_ce,
                live,
                student,
                s_at,
                label,
                s_step,
                C,
                log_1,
                z_s,
                rows,
                ce_losses,
                LABELS,
                APART,
            )
            _deliver(value, program + one, inside, loss, partial, ticket, program, programs, REDUCE)


@triton.jit
def scale_kernel(grad, upstream, out, n, BLOCK: tl.constexpr):
    """Write ``out = grad * upstream``, the upstream gradient read on the device."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(grad + at, mask=at < n, other=0.0).to(tl.float32) * tl.load(upstream)
    tl.store(out + at, x.to(out.dtype.element_ty), mask=at < n)


@triton.jit
def scale_in_place_kernel(grad, upstream, n, programs, BLOCK: tl.constexpr):
    """``grad *= upstream``; where the upstream, read on the device, is 1, nothing else is read."""
    factor = tl.load(upstream)
    tiles = tl.where(factor == 1.0, 0, tl.cdiv(n, BLOCK))
    for tile in range(tl.program_id(0), tiles, programs):
        at = tl.cast(tile, tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(grad + at, mask=at < n, other=0.0).to(tl.float32) * factor
        tl.store(grad + at, x.to(grad.dtype.element_ty), mask=at < n)
