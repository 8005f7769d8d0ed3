"""linear_kl at the size of language models: CPU seconds and peak memory against the peers, ``python -m bench heads``.

Forward and backward for the hidden states and the head of the student, one thread, every provider in one run: they take
turns, the time is CPU time of the process, which other load lengthens less than the wall time, and its median counts.
Peak memory is that of a process of its own for each provider: resident bytes at their highest, above those with the
inputs in place, so the gradients are in it. Before anything is timed, every provider is checked on a small case.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bench import results
from bench.measure import check, step
from bench.ops import linear_kl
from bench.registry import Inputs, Provider

FOLDER = Path(__file__).parent / "results" / "heads"
SHAPES = ("1024x1024x128256", "1024x512x32000")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TARGETS = {  # shape, dtype -> times the matrix products, bytes above the gradient of the head in float32
    ("1024x1024x128256", "float32"): (1.15, 256),
    ("1024x512x32000", "float32"): (1.25, 256),
    ("1024x1024x128256", "bfloat16"): (1.5, 128),
    ("1024x512x32000", "bfloat16"): (1.5, 128),
}
COLUMNS = (
    *("shape", "dtype", "provider", "cpu_s", "least_s", "most_s", "of_products", "peak_mb", "peak_less_head_mb"),
    *("loss_error", "grad_error", "rounds", "device", "torch", "commit", "date"),
)
PRODUCTS = ("four products", "four products, widened")
"""The least work; widened: of operands that are made float32 first, where the machine has no product of halves."""


def products(student: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor) -> object:
    """The least that the loss takes: both logits, and two products for the gradients."""
    with torch.no_grad():
        z = student @ weight.T
        other = teacher @ teacher_weight.T
        del other
        return z @ weight, z.T @ student


def widened(*inputs: Tensor) -> object:
    """The same in float32."""
    return products(*(x.detach().float() for x in inputs))


def run(shapes: list[str], dtypes: list[str], rounds: int, out: Path | None, without: list[str]) -> None:
    """Measures the cases and writes a row for each provider as soon as its case is done."""
    torch.set_num_threads(1)
    conditions = results.conditions(torch.device("cpu"))
    for shape in shapes:
        for dtype in dtypes:
            rows = [
                row | {name: conditions[name] for name in COLUMNS[-4:]} for row in _case(shape, dtype, rounds, without)
            ]
            if out is not None:
                _write(out, rows)
    if out is not None:
        print(f"rows in {out}")


def table(rows: list[dict[str, str]]) -> str:
    """Rows as a table, the targets in the head of each case."""
    lines = []
    for shape, dtype in dict.fromkeys((row["shape"], row["dtype"]) for row in rows):
        most, room = TARGETS.get((shape, dtype), (float("nan"), 0))
        lines += [
            f"**{shape} {dtype}**, target {most} x the products, {room} MB beside the head's gradient",
            "",
            "| provider | CPU s | x products | peak MB | less the head's gradient |",
            "|---|---|---|---|---|",
        ]
        for row in rows:
            if (row["shape"], row["dtype"]) == (shape, dtype):
                lines.append(
                    "| " + " | ".join(str(row[name]) for name in COLUMNS[2:9] if name not in COLUMNS[4:6]) + " |"
                )
        lines.append("")
    return "\n".join(lines)


def read() -> list[dict[str, str]]:
    """The committed rows."""
    rows: list[dict[str, str]] = []
    for path in sorted(FOLDER.glob("*.csv")):
        with path.open(newline="") as file:
            rows += csv.DictReader(file)
    return rows


def peak(provider: str, shape: str, dtype: str) -> None:
    """In a process of its own: prints the peak of a step in bytes above what the inputs take."""
    torch.set_num_threads(1)
    call = _calls()[provider]
    compiled = provider == "torch.compile"
    inputs = _inputs(shape, dtype)
    call(*(inputs if compiled else _inputs("64x128x8000", dtype)))  # whatever is loaded or compiled on first use
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest starts anew
    call(*inputs)
    print(json.dumps({"peak": _resident("VmHWM") - before}))


def _case(shape: str, dtype: str, rounds: int, without: list[str]) -> list[dict[str, object]]:
    errors, calls = {}, {}
    small, case = _inputs("64x128x8000", dtype), linear_kl.case_of("64x128x8000", DTYPES[dtype])
    truth = linear_kl.truth(*small)
    for name, call in _calls().items():
        if name in without or (dtype == "float32" and name == PRODUCTS[1]):
            continue
        if name not in PRODUCTS:
            errors[name] = check(linear_kl.BENCH, case, _providers()[name], small, truth)
        calls[name] = call
    peaks = {name: _peak_of(name, shape, dtype) for name in calls}
    inputs = _inputs(shape, dtype)
    if "torch.compile" in calls:
        calls["torch.compile"](*inputs)  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            call(*inputs)
            seconds[name].append(time.process_time() - start)
    classes, width = (int(number) for number in shape.split("x")[2:0:-1])
    rows: list[dict[str, object]] = []
    least = next((statistics.median(seconds[name]) for name in PRODUCTS if name in seconds), None)
    for name, taken in seconds.items():
        median = statistics.median(taken)
        loss_error, grad_error = (f"{x:.1e}" for x in errors[name]) if name in errors else ("", "")
        rows.append(
            {
                **{"shape": shape, "dtype": dtype, "provider": name, "cpu_s": f"{median:.3f}", "rounds": rounds},
                **{"least_s": f"{min(taken):.3f}", "most_s": f"{max(taken):.3f}"},
                "of_products": "" if least is None else f"{median / least:.3f}",
                "peak_mb": f"{peaks[name] / 2**20:.0f}",
                "peak_less_head_mb": f"{(peaks[name] - 4 * classes * width) / 2**20:.0f}",
                **{"loss_error": loss_error, "grad_error": grad_error},
            }
        )
        print({key: rows[-1][key] for key in COLUMNS[:9]}, flush=True)
    return rows


def _inputs(shape: str, dtype: str) -> Inputs:
    return linear_kl.make(linear_kl.case_of(shape, DTYPES[dtype]), torch.device("cpu"))


def _providers() -> dict[str, Provider]:
    return {provider.name: provider for provider in linear_kl.providers("cpu")}


def _calls() -> dict[str, Callable[..., object]]:
    """Everybody who is measured: one step on the inputs."""

    def stepping(function: Callable[..., Tensor]) -> Callable[..., object]:
        return lambda *inputs: step(function, inputs, backward=True)

    found: dict[str, Callable[..., object]] = dict(zip(PRODUCTS, (products, widened), strict=True))
    return found | {name: stepping(provider.function) for name, provider in _providers().items()}


def _peak_of(provider: str, shape: str, dtype: str) -> int:
    command = [sys.executable, "-m", "bench", "heads", "--peak", provider, "--shape", shape, "--dtype", dtype]
    environment = os.environ | {"MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"{provider}: {done.stderr[-2000:]}")
    return int(json.loads(done.stdout.splitlines()[-1])["peak"])


def _resident(what: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
