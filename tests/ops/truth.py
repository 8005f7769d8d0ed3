"""What the ops should give, in 80 decimal digits, with bounds on what rounding may make of it.

The bounds are first-order error analysis of the formulas in kdx/ops/*/README.md: every rounding is ``eps`` of what is
rounded, multiplied by how much the result depends on it. `SLACK` is the number of roundings in a row that they allow.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from mpmath import mp, mpf

DIGITS = 80
SLACK = 8.0
NEAR = 0.35  # |log p - log q| below which the kernels take differences from a series
FAR = 16.0  # maxima further apart than this, in units of T, are taken off before logits are compared


_float = np.vectorize(float, otypes=[float])


class Truth(NamedTuple):
    """A value and the error that rounding explains, the same for its gradient ``[...]``; NaN where NaN is due."""

    loss: float
    loss_error: float
    grad: np.ndarray
    grad_error: np.ndarray


def _is_nan(*rows: np.ndarray) -> bool:
    """Whether rows of logits have no softmax: a NaN, +inf, or nothing but -inf."""
    return not all(np.all(x < np.inf) and np.any(x > -np.inf) for x in rows)


def _nan_row(count: int) -> Truth:
    return Truth(math.nan, 0.0, np.full(count, math.nan), np.zeros(count))


def _share(q: mpf, p: mpf, divergence: str, beta: float) -> tuple[mpf, mpf, mpf]:
    """Of one class: its part of the loss, h and q h; a gradient of reverse KL and JSD is ``q (h - sum of q h)``."""
    if divergence == "forward":
        return (p * mp.log(p / q) if q else mp.inf) if p else mpf(0), mpf(0), mpf(0)
    if divergence == "reverse":
        h = (mp.log(q / p) if p else mp.inf) if q else mpf(0)
        return q * h if q else mpf(0), h, q * h if q else mpf(0)
    mixture = beta * p + (1 - mpf(beta)) * q
    h = mp.log(q / mixture) if q else mpf(0)
    return beta * (p * mp.log(p / mixture) if p else 0) + (1 - mpf(beta)) * q * h, h, q * h


def softmax_kl_row(s: np.ndarray, t: np.ndarray, temperature: float, divergence: str, beta: float, eps: float) -> Truth:
    """One row of softmax_kl, without T^2: logits ``[C]`` in float64, of which float32 is a part."""
    if _is_nan(s, t):
        return _nan_row(len(s))
    with mp.workdps(DIGITS), np.errstate(all="ignore"):
        x, y = ([(mpf(float(v)) - mpf(float(row.max()))) / temperature for v in row] for row in (s, t))
        log_s, log_t = (mp.log(mp.fsum(map(mp.exp, row))) for row in (x, y))
        q, p = [mp.exp(v - log_s) for v in x], [mp.exp(v - log_t) for v in y]
        shares = [_share(*pair, divergence, beta) for pair in zip(q, p, strict=True)]
        loss, slope = mp.fsum(share[0] for share in shares), mp.fsum(share[2] for share in shares)
        factor = {"forward": 0, "reverse": 1, "jsd": 1 - beta}[divergence]
        if divergence == "forward":
            grad = _float([(b - a) / temperature for a, b in zip(p, q, strict=True)])
        else:
            parts = zip(q, shares, strict=True)
            grad = _float([factor * a * (h - slope) / temperature if a else 0 for a, (_, h, _) in parts])
        d = [abs(b - log_t - a + log_s) if u or v else 0 for a, b, u, v in zip(x, y, q, p, strict=True)]
        # From here on sizes of errors, for which float64 is enough.
        size, away_s, away_t = _float(d), np.maximum(_float(x), -1e300), np.maximum(_float(y), -1e300)
        offset = float(abs(mpf(float(s.max())) - mpf(float(t.max()))) / temperature)
        q, p, h = _float(q), _float(p), _float([share[1] for share in shares])
    log_count = 1 + math.log(len(s))
    with np.errstate(over="ignore", invalid="ignore"):
        # Of log p - log q, absolute, and of q and p, relative.
        of_d = SLACK * eps * (log_count + (offset + size if offset <= FAR else abs(away_s) + abs(away_t)))
        of_q, of_p = (SLACK * eps * (log_count + abs(np.maximum(v, -800.0))) for v in (away_s, away_t))
        both, near = np.minimum(p, q), size < NEAR
        weight = {"forward": p, "reverse": q, "jsd": both}[divergence]
        close = both * (size * (size * (of_q + of_p) + 2 * of_d) + of_d * of_d)
        apart = np.where(weight > 0, weight * (of_d + np.where(size < np.inf, size, 0.0) * (of_q + of_p)), 0.0)
        of_loss = float(np.where(near, close, apart + 2 * (p * of_p + q * of_q)).sum())
        if divergence == "forward":
            of_grad = np.where(near, 1.5 * both * (of_d + size * (of_q + of_p)), p * of_p + q * of_q)
        else:
            of_slope = of_loss / (1 if divergence == "reverse" else min(beta, 1 - beta))
            reach = abs(h) + abs(float(slope))
            # A probability below the smallest normal number may be taken for 0.
            vanishing = q < (2.0**-120 if eps > 2.0**-50 else 2.0**-1015)
            of_grad = np.where(q > 0, q * (of_d + of_slope + reach * (of_q + vanishing)), 0.0)
    return Truth(float(loss), of_loss + abs(float(loss)) * SLACK * eps, grad, of_grad / temperature)


def cross_entropy_row(s: np.ndarray, label: int, eps: float) -> Truth:
    """The cross-entropy of logits ``[C]`` and its gradient."""
    if _is_nan(s):
        return _nan_row(len(s))
    with mp.workdps(DIGITS), np.errstate(all="ignore"):
        top = mpf(float(s.max()))
        x = [mpf(float(v)) - top for v in s]
        log_sum = mp.log(mp.fsum(map(mp.exp, x)))
        loss = log_sum - x[label]
        q = np.array([float(mp.exp(v - log_sum)) for v in x])
        one = np.arange(len(s)) == label
        grad = np.array([float(mp.exp(v - log_sum) - int(j == label)) for j, v in enumerate(x)])
    far = np.maximum([float(v) for v in x], -800.0)
    rel = SLACK * eps * (1 + np.abs(far) + math.log(len(s)))
    error = SLACK * eps * (1 + abs(float(loss)) + math.log(len(s)))
    return Truth(float(loss), error, grad, q * rel + one * eps * SLACK)


def _squares(points: np.ndarray, smallest: float) -> np.ndarray:
    exact = np.vectorize(lambda v: mpf(float(v)), otypes=[object])(points)
    difference = exact[:, None] - exact[None]
    square = (difference * difference).sum(-1) if points.shape[1] else np.full((len(points),) * 2, mpf(0), object)
    return np.vectorize(lambda v: mpf(0) if v < smallest else v, otypes=[object])(square)


_root = np.vectorize(mp.sqrt, otypes=[object])
_inverse = np.vectorize(lambda v: mpf(0) if v == 0 else 1 / mp.sqrt(v), otypes=[object])


def _clamp(z: np.ndarray, delta: float) -> np.ndarray:
    return np.vectorize(lambda v: max(min(v, mpf(delta)), mpf(-delta)), otypes=[object])(z)


def rkd(
    student: np.ndarray,
    teacher: np.ndarray,
    distance_weight: float,
    angle_weight: float,
    delta: float,
    eps: float,
    smallest: float,
) -> Truth:
    """Both relational losses of points ``[N, D]`` in float64; squared distances below ``smallest`` are duplicates."""
    n = len(student)
    if n < 2 or (distance_weight == 0 and angle_weight == 0):
        return Truth(0.0, 0.0, np.zeros(student.shape), np.zeros(student.shape))
    if not (np.isfinite(student).all() and np.isfinite(teacher).all()):
        return Truth(math.nan, 0.0, np.full(student.shape, math.nan), np.zeros(student.shape))
    with mp.workdps(DIGITS), np.errstate(all="ignore"):
        s, t = _squares(student, smallest), _squares(teacher, smallest)
        r, u = _inverse(s), _inverse(t)
        loss, v = mpf(0), np.full((n, n), mpf(0), object)
        loss_error, v_error = 0.0, np.zeros((n, n))
        c = SLACK * eps
        fr = _float(r)
        if distance_weight:
            d, e = _root(s), _root(t)
            means = [x.sum() / max(1, int((x != 0).sum())) for x in (d, e)]
            mu, nu = (0 if m == 0 else 1 / m for m in means)
            z = d * mu - e * nu
            psi = _clamp(z, delta)
            loss += distance_weight * (psi * (z - psi / 2)).sum() / n**2
            number = max(1, int((d != 0).sum()))
            shift = (psi * d).sum() * mu / number
            v = v + distance_weight * mu * (psi - shift) * r / n**2
            wrong = 2 * c * _float(d * mu + e * nu)
            fpsi = np.abs(_float(psi))
            loss_error += distance_weight * float((wrong * (fpsi + wrong)).sum()) / n**2
            of_shift = float((wrong + c * fpsi).sum()) / n**2 * 2
            v_error += distance_weight * float(mu) * fr / n**2 * (wrong + of_shift + c * (fpsi + abs(float(shift))))
        if angle_weight:

            def cosines(q: np.ndarray, i: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                a = (q[:, :, None] + q[:, None, :] - q[None]) / 2 * i[:, :, None] * i[:, None, :]
                sizes = (q[:, :, None] + q[:, None, :] + q[None]) / 2 * i[:, :, None] * i[:, None, :]
                return a, c * _float(sizes)

            (a, a_error), (b, b_error) = cosines(s, r), cosines(t, u)
            z = a - b
            psi = _clamp(z, delta)
            loss += angle_weight * (psi * (z - psi / 2)).sum() / n**3
            wrong = a_error + b_error
            fpsi, fa = np.abs(_float(psi)), np.abs(_float(a))
            loss_error += angle_weight * float((wrong * (fpsi + wrong)).sum()) / n**3
            ends = r * (psi * r[:, None, :]).sum(-1) - r * r * (psi * a).sum(-1)
            opposite = (psi * r[:, :, None] * r[:, None, :]).sum(0)
            scale = angle_weight / mpf(n) ** 3
            v = v + (ends + ends.T - opposite) * (r != 0) * scale
            part = fr * ((wrong + c * fpsi) * fr[:, None, :]).sum(-1)
            part += fr**2 * ((wrong + c * fpsi) * fa + fpsi * a_error).sum(-1)
            across = ((wrong + c * fpsi) * fr[:, :, None] * fr[:, None, :]).sum(0)
            v_error += (part + part.T + across) * (fr != 0) * float(scale)
        exact = np.vectorize(lambda x: mpf(float(x)), otypes=[object])(student)
        difference = exact[:, None] - exact[None]
        grad = 2 * (v[:, :, None] * difference).sum(1) if student.shape[1] else exact
        reach = np.abs(_float(exact - exact.sum(0) / n)).max(0, initial=0.0) if n else 0.0
        spread = 2 * reach
        of_product = c * np.abs(_float(v)).sum(1)[:, None] * spread
        own = np.abs(_float(difference))
        grad_error = 2 * (v_error[:, :, None] * own).sum(1) + 2 * of_product + 2 * v_error.sum(1)[:, None] * spread * c
    return Truth(float(loss), loss_error + c * abs(float(loss)), _float(grad), grad_error)
