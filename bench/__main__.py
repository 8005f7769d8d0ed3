"""``python -m bench run OP | gpu | table | students``; see bench/README.md."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

import torch

from bench import registry, results, store, students, table
from bench.measure import copy_bandwidth
from bench.run import run

ROOT = Path(__file__).parent.parent
GPU_TEST_SECONDS = 240


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Benchmarks of the kernels.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="time one op (or all) on this machine")
    one.add_argument("op", choices=[*registry.names(), "all"])
    one.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    one.add_argument("--threads", type=int, nargs="*", help="CPU thread counts; default: 1 and all")
    one.add_argument("--only", default="", help="only cases whose shape contains this, for example 1024x1000")
    one.add_argument("--seconds", type=float, default=0.5, help="per provider and case")
    one.add_argument("--out", type=Path, help="result file (CSV); without it the rows are only printed")
    gpu = commands.add_parser("gpu", help="tests, all benchmarks and the copy roofline of this GPU, in one result file")
    gpu.add_argument("--out", type=Path, help="result file (CSV); default: bench/results/<device>-<date>.csv")
    gpu.add_argument("--commit", help="what to write where there is no git checkout")
    commands.add_parser("table", help="rewrite the tables and plots of bench/README.md from bench/results/*.csv")
    derived = commands.add_parser("students", help="accuracy and latency of derived students, alone and distilled")
    derived.add_argument("--folder", type=Path, default=Path("runs/students"), help="where the runs are kept")
    derived.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    derived.add_argument("--epochs", type=int, default=4, help="of the students")
    derived.add_argument("--draw", action="store_true", help="only redo picture and table, from the rows")
    cached = commands.add_parser("store", help="epochs from a teacher store against epochs with the live teacher")
    cached.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    cached.add_argument("--table", action="store_true", help="only print the table of the rows that are there")
    options = parser.parse_args()
    if options.command == "store":
        if not options.table:
            store.run(options.seeds)
        print(store.table())
        return 0
    if options.command == "students":
        if options.draw:
            students.document()
        else:
            students.run(options.folder, options.seeds, options.epochs)
        print(students.table())
        return 0
    if options.command == "table":
        table.update()
        return 0
    return _gpu(options) if options.command == "gpu" else _run(options)


def _run(options: argparse.Namespace) -> int:
    device = torch.device(options.device)
    threads = [1]
    if device.type == "cpu":
        threads = options.threads or sorted({1, torch.get_num_threads()})
    ops = registry.names() if options.op == "all" else [options.op]
    rows: list[dict[str, object]] = []
    wrong: list[str] = []
    for op in ops:
        found, failed = run(
            registry.load(op), device, threads, results.conditions(device), options.seconds, options.only
        )
        rows += found
        wrong += failed
    if options.out:
        results.write(options.out, rows)
        print(f"{len(rows)} rows in {options.out}")
    return _verdict(wrong)


def _gpu(options: argparse.Namespace) -> int:
    if not torch.cuda.is_available():
        print("no CUDA device: torch.cuda.is_available() is False; `python -m bench run OP` times a CPU")
        return 2
    start = time.monotonic()
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/ops"],
        cwd=ROOT,
        check=False,
        timeout=GPU_TEST_SECONDS,
    )
    if tests.returncode != 0:
        print("the GPU tests failed (or there are none): no number on red")
        return 1
    device = torch.device("cuda", torch.cuda.current_device())
    conditions = results.conditions(device, options.commit)
    rows: list[dict[str, object]] = []
    wrong: list[str] = []
    for op in registry.names():
        found, failed = run(registry.load(op), device, [1], conditions, seconds=0.2)
        rows += found
        wrong += failed
    copy = f"{copy_bandwidth(device) / 1e9:.4g}"
    rows.append({"op": "copy", "shape": "1 GiB", "gb_per_s": copy, "copy_gb_per_s": copy} | conditions)
    slug = re.sub(r"[^a-z0-9]+", "-", conditions["device"].lower()).strip("-")
    out = options.out or results.FOLDER / f"{slug}-{conditions['date']}.csv"
    results.write(out, rows)
    print(f"{len(rows)} rows in {out}, after {time.monotonic() - start:.0f} s")
    return _verdict(wrong)


def _verdict(wrong: list[str]) -> int:
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
