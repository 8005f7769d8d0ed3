"""Time and memory of the relational losses against N: ``python -m bench.rkd_scaling [--plot]``.

Every measurement is a process of its own on one thread. Time is the CPU time of that process, which other load on the
machine lengthens less than it does the wall time; memory is the rise of the largest resident set over what the process
held before the call. Eager is left out where it would need more than 4 GB.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from bench import results, rkd_authors
from kdx.ops import rkd_angle, rkd_distance

DEPTH = 512
FILE = Path(__file__).parent / "results" / "rkd_scaling" / "cpu.csv"
SIZES = {"rkd_distance": (64, 128, 256, 512, 1024, 2048), "rkd_angle": (32, 64, 128, 256, 512, 1024)}
PROVIDERS = {
    ("rkd_distance", "eager"): rkd_authors.rkd_distance,
    ("rkd_distance", "kdx cpu"): rkd_distance,
    ("rkd_angle", "eager"): rkd_authors.rkd_angle,
    ("rkd_angle", "kdx cpu"): rkd_angle,
}
COLUMNS = ("op", "provider", "N", "D", "median_ms", "peak_mb", "device", "torch", "commit", "date")


def one(op: str, provider: str, n: int) -> dict[str, float]:
    """CPU milliseconds of forward and backward, and MB of memory at the peak."""
    torch.set_num_threads(1)
    student, teacher = torch.randn(n, DEPTH).requires_grad_(), torch.randn(n, DEPTH)
    function = PROVIDERS[op, provider]
    small = torch.randn(8, DEPTH).requires_grad_()
    torch.autograd.grad(function(small, torch.randn(8, DEPTH)), small)  # whatever is loaded on first use
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    while len(times) < 3 or (sum(times) < 1 and len(times) < 50):
        start = time.process_time()
        torch.autograd.grad(function(student, teacher), student)
        times.append(time.process_time() - start)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"median_ms": round(1e3 * statistics.median(times), 4), "peak_mb": round(peak, 2)}


def measure() -> None:
    """Write every row."""
    conditions = results.conditions(torch.device("cpu"))
    rows = []
    for op, provider in PROVIDERS:
        for n in SIZES[op]:
            if op == "rkd_angle" and provider == "eager" and rkd_authors.angle_bytes(n, DEPTH) > 4 << 30:
                continue
            command = [sys.executable, "-m", "bench.rkd_scaling", "--one", op, provider, str(n)]
            found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            row = {"op": op, "provider": provider, "N": n, "D": DEPTH, **found}
            rows.append(row | {key: conditions[key] for key in COLUMNS if key in conditions})
            print(f"{op} {provider} N={n}: {found['median_ms']:.4g} ms, {found['peak_mb']:.4g} MB", flush=True)
    FILE.parent.mkdir(parents=True, exist_ok=True)
    with FILE.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def plot() -> None:
    """Time and memory against N, from the committed rows."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    with FILE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.5), layout="constrained", sharex="col")
    for column, op in enumerate(SIZES):
        for line, (key, label) in enumerate(
            (("median_ms", "forward + backward, CPU ms"), ("peak_mb", "peak memory, MB"))
        ):
            axis = axes[line][column]
            for provider in ("eager", "kdx cpu"):
                # Below 1 MB the resident set, which grows by pages and arenas, says nothing.
                points = [(int(r["N"]), float(r[key])) for r in rows if (r["op"], r["provider"]) == (op, provider)]
                points = [(n, value) for n, value in points if key != "peak_mb" or value >= 1]
                axis.plot(*zip(*points, strict=True), marker="o", label=provider)
            axis.set(
                xscale="log", yscale="log", ylabel=label, xlabel="points N" if line else "", title="" if line else op
            )
            axis.grid(alpha=0.3, which="both")
            axis.legend()
    figure.suptitle(f"D = {DEPTH}, float32, one thread, {rows[0]['device']}, torch {rows[0]['torch']}", fontsize=10)
    figure.savefig(FILE.with_suffix(".png"), dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", action="store_true", help="only draw the plot again")
    parser.add_argument("--one", nargs=3, metavar=("OP", "PROVIDER", "N"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        op, provider, n = options.one
        print(json.dumps(one(op, provider, int(n))))
        return
    if not options.plot:
        measure()
    plot()


if __name__ == "__main__":
    main()
