"""Random cases of every op, each compared with `truth`; run by test_fuzz.py, and by hand for a longer hunt.

``python -m tests.ops.fuzz SEED CASES [BACKEND ...]`` prints what does not agree.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import torch
from torch import Tensor

from kdx.ops import kd_loss, pairwise_sq_dist, rkd, rkd_angle, rkd_distance, softmax_kl
from tests.ops import truth

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24, torch.float64: 2.0**-53}
SMALLEST = {torch.float16: 2.0**-24}


def accumulated(dtype: torch.dtype) -> torch.dtype:
    """The dtype that losses are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def laid_out(x: Tensor, rng: np.random.Generator) -> Tensor:
    """The same values with other strides: in place, every other column, a transposed copy, or off by one element."""
    kind = rng.integers(5)
    if kind == 0 and x.dim() == 2:
        return x.t().contiguous().t()
    if kind == 1:
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), math.nan, dtype=x.dtype)
        wide[..., ::2] = x
        return wide[..., ::2]
    if kind == 2:
        flat = torch.full((x.numel() + 1,), math.nan, dtype=x.dtype)
        flat[1:] = x.reshape(-1)
        return flat[1:].view(x.shape)
    if kind == 3:
        wide = torch.full((*x.shape[:-1], x.shape[-1] + 3), math.nan, dtype=x.dtype)
        wide[..., 1:-2] = x
        return wide[..., 1:-2]
    return x.clone()


def _top(dtype: torch.dtype) -> float:
    return math.log10(torch.finfo(dtype).max)


def logits(rng: np.random.Generator, dtype: torch.dtype, rows: int, classes: int) -> tuple[Tensor, Tensor]:
    """Student and teacher: usual sizes, nearly equal, shifted by a constant, huge, tiny, with infinities and NaN."""
    top = min(_top(dtype) - 1, 150)
    size = 10.0 ** (rng.uniform(-1, 1.5) if rng.random() < 0.5 else rng.uniform(-6, min(top, 12)))
    if rng.random() < 0.05:
        size = 10.0 ** rng.uniform(-20, top)
    s = size * rng.standard_normal((rows, classes))
    kind = rng.integers(4)
    if kind == 0:
        t = s + 10.0 ** rng.uniform(-5, 1) * min(size, 1e30) * rng.standard_normal((rows, classes))
    elif kind == 1:
        t = 10.0 ** (rng.uniform(-1, 1.5) if rng.random() < 0.5 else rng.uniform(-6, min(top, 12)))
        t = t * rng.standard_normal((rows, classes))
    elif kind == 2:
        t = s + 10.0 ** rng.uniform(-1, min(top, 10)) + rng.standard_normal((rows, classes))
    else:
        t = s.copy()
    if rng.random() < 0.15:
        s = s + 10.0 ** rng.uniform(0, min(top, 11))
    pair = [torch.tensor(x).clamp(-(10.0**top), 10.0**top).to(dtype) for x in (s, t)]
    for x in pair:
        if rows and rng.random() < 0.2:
            for _ in range(int(rng.integers(1, 4))):
                at = int(rng.integers(rows)), int(rng.integers(classes))
                x[at] = rng.choice([-math.inf, -math.inf, -math.inf, math.inf, math.nan])
        if rows and rng.random() < 0.05:
            x[int(rng.integers(rows))] = -math.inf
    if rows and rng.random() < 0.1:
        for x in pair:
            x[:, int(rng.integers(classes))] = -math.inf
    return pair[0], pair[1]


def _differs(name: str, found: np.ndarray, want: np.ndarray, error: np.ndarray, dtype: torch.dtype) -> str | None:
    """What is wrong with an array; an infinity is due where the wanted number is too large for the dtype."""
    finfo = torch.finfo(dtype)
    floor = SMALLEST.get(dtype, float(finfo.tiny) * 4)
    bound = error + np.abs(want) * ROUNDING[dtype] * 1.01 + floor
    with np.errstate(invalid="ignore"):
        fine = np.abs(found - want) <= bound
        fine |= np.isnan(found) & np.isnan(want)
        fine |= found == want
        fine |= (found == np.inf) & (want + bound >= float(finfo.max))
        fine |= (found == -np.inf) & (want - bound <= -float(finfo.max))
    if fine.all():
        return None
    at = np.unravel_index(np.argmin(fine), fine.shape)
    return f"{name}{list(map(int, at))}: {found[at]!r}, should be {want[at]!r} +- {np.asarray(bound)[at]:.3g}"


def softmax_case(seed: int, backends: list[str]) -> list[str]:
    """One case of softmax_kl or kd_loss; sentences about what does not agree with the truth."""
    rng = np.random.default_rng([seed, 1])
    dtype = DTYPES[rng.choice(4, p=[0.5, 0.3, 0.1, 0.1])]
    acc = accumulated(dtype)
    eps = 2.0**-53 if acc == torch.float64 else 2.0**-24
    classes = int(rng.choice([1, 2, 3, 5, 7, 8, 9, 10, 15, 16, 17, 31, 33, 64, 130, 257], p=[0.06] * 14 + [0.12, 0.04]))
    rows = int(rng.choice([0, 1, 2, 3, 5])) if classes < 100 else 1
    s, t = logits(rng, dtype, rows, classes)
    temperature = float(rng.choice([1.0, 2.0, 4.0, 10.0 ** rng.uniform(-2, 3)]))
    divergence = str(rng.choice(["forward", "reverse", "jsd"]))
    beta = float(rng.choice([0.5, 0.1, 0.9, 10.0 ** rng.uniform(-5, -0.1)]))
    reduction = str(rng.choice(["none", "sum", "mean", "batchmean"]))
    mask = torch.tensor(rng.random(rows) < 0.8) if rng.random() < 0.3 else None
    weight = torch.tensor(rng.choice([0.0, 1.0, 0.3, 2.5], rows)).to(acc) if rng.random() < 0.3 else None
    dim = int(rng.integers(2))
    labelled = rng.random() < 0.3
    alpha = float(rng.choice([0.0, 1.0, 0.9, 0.5]))
    labels = torch.tensor(rng.integers(0, classes, rows))
    labels[torch.tensor(rng.random(rows) < 0.2)] = -100
    counts = np.ones(rows, bool) if mask is None else mask.numpy()
    number = max(1, int(counts.sum()))
    kl = counts.astype(float) * (1.0 if weight is None or labelled else weight.double().numpy())
    kl = kl * temperature**2
    divided = {"none": 1, "sum": 1, "batchmean": number, "mean": number * classes}[reduction]
    if labelled:
        divergence, divided = "forward", {"none": 1, "sum": 1}.get(reduction, number)
        kl = kl * alpha
    kl = kl / divided
    with_label = counts & (labels.numpy() >= 0)
    ce = with_label * (1 - alpha) / (max(1, with_label.sum()) if reduction in ("mean", "batchmean") else 1)
    want, error = np.zeros(rows), np.zeros(rows)
    grad, grad_error = np.zeros((rows, classes)), np.zeros((rows, classes))
    undefined = np.zeros(rows, bool)
    upstream = float(rng.choice([1.0, 1.0, 0.37]))
    for r in range(rows):
        s_row, t_row = s[r].double().numpy(), t[r].double().numpy()
        parts = []
        if kl[r] != 0:
            parts.append((kl[r], truth.softmax_kl_row(s_row, t_row, temperature, divergence, beta, eps)))
            undefined[r] |= divergence == "reverse" and parts[-1][1].loss == math.inf
        if labelled and ce[r] != 0:
            parts.append((ce[r], truth.cross_entropy_row(s_row, int(labels[r]), eps)))
        for factor, part in parts:
            want[r] += factor * part.loss
            error[r] += factor * part.loss_error + 4 * eps * abs(factor * part.loss)
            grad[r] += factor * part.grad * upstream
            grad_error[r] += (factor * part.grad_error + 4 * eps * factor * np.abs(part.grad)) * upstream
    if reduction != "none":
        want, error = np.asarray(want.sum()), np.asarray(error.sum() + 4 * eps * np.abs(want).sum())
    problems = []
    student, teacher = (x if dim == 1 else x.t() for x in (s, t))
    for backend in backends:
        a = laid_out(student, np.random.default_rng(seed)).detach().requires_grad_()
        b = laid_out(teacher, np.random.default_rng(seed + 1))
        options = {"temperature": temperature, "mask": mask, "reduction": reduction, "dim": dim, "backend": backend}
        if labelled:
            loss = kd_loss(a, b, labels, alpha=alpha, **options)
        else:
            loss = softmax_kl(a, b, divergence=divergence, beta=beta, weight=weight, **options)
        (g,) = torch.autograd.grad(loss.sum() * upstream, a)
        g = (g if dim == 1 else g.t()).double().numpy()
        what = [_differs("loss", np.asarray(loss.detach().double().numpy()), want, np.asarray(error), acc)]
        once = np.abs(grad) * (ROUNDING[dtype] if upstream != 1.0 else 0.0)
        keep = ~undefined
        what.append(_differs("gradient", g[keep], grad[keep], (grad_error + once)[keep], dtype))
        problems += [
            f"softmax {seed} {backend} {dtype} rows={rows} C={classes} T={temperature:.4g} {divergence} beta={beta:.3g}"
            f"{' kd alpha=' + str(alpha) if labelled else ''} {reduction}: {w}"
            for w in what
            if w
        ]
    return problems


def clouds(rng: np.random.Generator, dtype: torch.dtype, n: int, depth: int) -> Tensor:
    """Points: usual ones, far from the origin, of many scales, duplicates, lines, one far away, NaN and infinities."""
    top = min(_top(dtype) - 1, 140)
    x = rng.standard_normal((n, depth))
    kind = rng.integers(8)
    if kind == 0:
        x = x * 10.0 ** rng.uniform(-15, min(top, 17))
    elif kind == 1:
        x = x + 10.0 ** rng.uniform(0, 6)
    elif kind == 2:
        x = x * 10.0 ** rng.uniform(-6, 5, (n, 1))
    elif kind == 3 and n:
        x[rng.integers(n)] *= 10.0 ** rng.uniform(0, min(top, 18))
    elif kind == 4 and n > 1:
        x[rng.integers(n)] = x[rng.integers(n)] * (1 + 10.0 ** rng.uniform(-9, -1))
    elif kind == 5:
        x = x[:1] * rng.standard_normal((n, 1)) if n else x
    if n > 1 and rng.random() < 0.3:
        x[rng.integers(n)] = x[rng.integers(n)]
    if n and rng.random() < 0.03:
        x[:] = x[:1]
    x = torch.tensor(x).clamp(-(10.0**top), 10.0**top).to(dtype)
    if n and depth and rng.random() < 0.06:
        x[int(rng.integers(n)), int(rng.integers(depth))] = rng.choice([math.nan, math.inf, -math.inf])
    return x


def rkd_case(seed: int, backends: list[str]) -> list[str]:
    """One case of the relational losses and of pairwise_sq_dist."""
    rng = np.random.default_rng([seed, 2])
    dtypes = [DTYPES[rng.choice(4, p=[0.55, 0.25, 0.1, 0.1])]] * 2
    if rng.random() < 0.1:
        dtypes[1] = DTYPES[rng.integers(4)]
    acc = torch.float64 if torch.float64 in dtypes else torch.float32
    eps, smallest = 2.0 ** (-53 if acc == torch.float64 else -24), float(torch.finfo(acc).tiny)
    n = int(rng.choice([0, 1, 2, 3, 4, 5, 6, 7], p=[0.02, 0.05, 0.08, 0.2, 0.2, 0.2, 0.15, 0.1]))
    depths = [int(rng.choice([1, 2, 3, 8, 17, 128, 130], p=[0.1, 0.15, 0.25, 0.2, 0.2, 0.05, 0.05])) for _ in range(2)]
    x, y = (clouds(rng, dtype, n, depth) for dtype, depth in zip(dtypes, depths, strict=True))
    delta = float(rng.choice([1.0, 0.1, 10.0 ** rng.uniform(-3, 2)]))
    op, weights = [(rkd, (25.0, 50.0)), (rkd_distance, (1.0, 0.0)), (rkd_angle, (0.0, 1.0))][rng.integers(3)]
    arrays = [v.double().numpy() for v in (x, y)]
    want = truth.rkd(*arrays, *weights, delta, eps, smallest)
    swapped = truth.rkd(*arrays[::-1], *weights, delta, eps, smallest)
    problems = []
    for backend in backends:
        a = laid_out(x, np.random.default_rng(seed)).detach().requires_grad_()
        b = laid_out(y, np.random.default_rng(seed + 1)).detach().requires_grad_()
        loss = op(a, b, delta=delta, backend=backend)
        g, h = (v.double().numpy() for v in torch.autograd.grad(loss, (a, b)))
        what = [
            _differs("loss", np.asarray(loss.item()), np.asarray(want.loss), np.asarray(want.loss_error), acc),
            _differs("student gradient", g, want.grad, want.grad_error, dtypes[0]),
            _differs("teacher gradient", h, swapped.grad, swapped.grad_error, dtypes[1]),
        ]
        problems += [
            f"{op.__name__} {seed} {backend} {dtypes[0]} {dtypes[1]} N={n} D={depths} delta={delta:.3g}: {w}"
            for w in what
            if w
        ]
        if depths[0] == depths[1] and n:
            square = pairwise_sq_dist(x, y, backend=backend).double().numpy()
            with np.errstate(all="ignore"):
                exact = ((arrays[0].astype(np.longdouble)[:, None] - arrays[1].astype(np.longdouble)) ** 2).sum(-1)
            w = _differs("square", square, exact.astype(float), np.abs(exact.astype(float)) * eps * 16, acc)
            problems += [f"pairwise_sq_dist {seed} {backend}: {w}"] if w else []
    return problems


def problems(seed: int, cases: int, backends: list[str]) -> list[str]:
    """What does not agree in ``cases`` cases of each family from ``seed`` on."""
    found = []
    for case in range(seed, seed + cases):
        for run in (softmax_case, rkd_case):
            try:
                with np.errstate(all="ignore"):
                    found += run(case, backends)
            except Exception as error:  # an op that raises is a finding like any other
                found.append(f"{run.__name__} {case}: {type(error).__name__}: {error}")
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(*problems(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] or ["cpu", "reference"]), sep="\n")
