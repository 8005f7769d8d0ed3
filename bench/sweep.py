"""softmax_kl on a CPU over many shapes, against eager and torch.compile: ``python -m bench sweep``.

Rows of 2 to 128,256 classes, few and many, and dense predictions ``[N, C, H, W]`` with ``dim=1``, on one thread.
Everybody takes turns; the time is CPU time of the process, its median counts. Each provider is held to float64 first.
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import results
from kdx.ops import softmax_kl

FOLDER = Path(__file__).parent / "results" / "sweep"
T = 4.0
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
ROWS = [
    "8x10",
    "64x10",
    "1x1000",
    "64x100",
    "256x100",
    "4096x2",
    "131072x2",
    "131072x3",
    "16384x4",
    "16384x10",
    "131072x10",
]
ROWS += ["65536x19", "8192x32", "8192x40", "8192x41", "8192x64", "8192x100", "4096x256", "1024x1000", "4096x1000"]
ROWS += ["1024x1001", "256x8191", "64x32000", "16x128256"]
DENSE = ["32x10x49", "2x21x64x64", "4x19x128x128", "8x2x64x64", "2x150x64x64", "1x1000x32x32", "4x10x7"]
HALVES = ["64x10", "16384x10", "131072x10", "1024x1000", "64x32000", "2x21x64x64", "4x19x128x128"]
CASES = [(shape, "float32") for shape in ROWS + DENSE] + [(shape, dtype) for dtype in HALF for shape in HALVES]
COLUMNS = (
    "shape",
    "dtype",
    "pass",
    "eager_ms",
    "compile_ms",
    "kdx_ms",
    "of_eager",
    "of_compile",
    "loss_error",
    "grad_error",
)
COLUMNS += ("rounds", "device", "torch", "commit", "date")


def make(shape: str, dtype: str) -> tuple[Tensor, Tensor]:
    """Logits of std 3 and a teacher one away; the classes are the second dimension."""
    generator = torch.Generator().manual_seed(0)
    sizes = [int(size) for size in shape.split("x")]
    student = 3 * torch.randn(sizes, generator=generator)
    teacher = student + torch.randn(sizes, generator=generator)
    kind = HALF.get(dtype, torch.float32)
    return student.to(kind).requires_grad_(), teacher.to(kind)


def eager(student: Tensor, teacher: Tensor) -> Tensor:
    """The loss as a careful user writes it, in float32."""
    log_q, log_p = F.log_softmax(student.float() / T, 1), F.log_softmax(teacher.float() / T, 1)
    rows = student.numel() // student.shape[1]
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True) * (T**2 / rows)


def ours(student: Tensor, teacher: Tensor) -> Tensor:
    """The loss by kdx, as a scheme calls it."""
    return softmax_kl(student, teacher, temperature=T, dim=1, once_differentiable=True, backend="cpu")


def run(only: list[str], rounds: int, seconds: float, out: Path | None) -> None:
    """Measures the cases and adds a row for each pass as soon as it is known."""
    torch.set_num_threads(1)
    conditions = results.conditions(torch.device("cpu"))
    for shape, dtype in CASES:
        if only and shape not in only:
            continue
        torch.compiler.reset()
        calls: dict[str, Callable[..., Tensor]] = {
            "eager": eager,
            "compile": torch.compile(eager, dynamic=False),
            "kdx": ours,
        }
        student, teacher = make(shape, dtype)
        errors = _errors(student, teacher)
        for name in ("fwd", "fwd+bwd"):
            taken = _time(calls, student, teacher, name == "fwd+bwd", rounds, seconds)
            medians = {each: statistics.median(values) * 1e3 for each, values in taken.items()}
            row: dict[str, object] = {"shape": shape, "dtype": dtype, "pass": name, "rounds": len(taken["kdx"])}
            row |= {f"{each}_ms": f"{value:.4g}" for each, value in medians.items()}
            row |= {f"of_{each}": f"{medians[each] / medians['kdx']:.2f}" for each in ("eager", "compile")}
            row |= {"loss_error": f"{errors[0]:.1e}", "grad_error": f"{errors[1]:.1e}"}
            print({key: row[key] for key in COLUMNS[:10]}, flush=True)
            if out is not None:
                _write(out, row | {key: conditions[key] for key in COLUMNS[-4:]})


def table(rows: list[dict[str, str]]) -> str:
    """How many times as long as kdx the others take, forward and with the backward pass."""
    lines = [
        "| shape | dtype | ms, fwd+bwd | eager, fwd+bwd | compile, fwd+bwd | eager, fwd | compile, fwd |",
        "|---|---|---|---|---|---|---|",
    ]
    found = {(row["shape"], row["dtype"], row["pass"]): row for row in rows}
    for shape, dtype in dict.fromkeys((row["shape"], row["dtype"]) for row in rows):
        fwd, both = found[shape, dtype, "fwd"], found[shape, dtype, "fwd+bwd"]
        ratios = [f"{row[name]}x" for row in (both, fwd) for name in ("of_eager", "of_compile")]
        lines.append(f"| {shape} | {dtype} | {both['kdx_ms']} | " + " | ".join(ratios) + " |")
    return "\n".join(lines)


def read() -> list[dict[str, str]]:
    """The committed rows."""
    rows: list[dict[str, str]] = []
    for path in sorted(FOLDER.glob("*.csv")):
        with path.open(newline="") as file:
            rows += csv.DictReader(file)
    return rows


def _errors(student: Tensor, teacher: Tensor) -> tuple[float, float]:
    """Relative errors of kdx's loss and gradient; a wrong result is not timed."""
    exact = student.detach().double().requires_grad_()
    want = softmax_kl(exact, teacher.double(), temperature=T, dim=1, backend="reference")
    (want_grad,) = torch.autograd.grad(want, exact)
    scale = 1.0 if student.dtype != torch.float16 else 65536.0  # as a loss scaler has it
    (grad,) = torch.autograd.grad(scale * ours(student, teacher), student)
    loss_error = abs(ours(student, teacher).item() - want.item()) / want.item()
    grad_error = ((grad.double() / scale - want_grad).norm() / want_grad.norm()).item()
    bound = {torch.float32: 2e-6, torch.bfloat16: 5e-3, torch.float16: 2e-3}[student.dtype]
    if loss_error > 1e-5 or grad_error > bound:
        raise AssertionError(
            f"kdx is wrong at {tuple(student.shape)} {student.dtype}: {loss_error:.1e}, {grad_error:.1e}"
        )
    return loss_error, grad_error


def _time(
    calls: dict[str, Callable[..., Tensor]],
    student: Tensor,
    teacher: Tensor,
    backward: bool,
    rounds: int,
    seconds: float,
) -> dict[str, list[float]]:
    def once(call: Callable[..., Tensor]) -> None:
        if backward:
            torch.autograd.grad(call(student, teacher), student)
        else:
            with torch.no_grad():
                call(student, teacher)

    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(3):
            once(call)
    start = time.process_time()
    once(calls["eager"])
    repeats = max(1, int(1e-3 / max(time.process_time() - start, 1e-6)))  # short calls share a sample of a millisecond
    began = time.perf_counter()
    while len(taken["kdx"]) < rounds or (time.perf_counter() - began < seconds and len(taken["kdx"]) < 200):
        for name, call in calls.items():
            start = time.process_time()
            for _ in range(repeats):
                once(call)
            taken[name].append((time.process_time() - start) / repeats)
    return taken


def _write(path: Path, row: dict[str, object]) -> None:
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
