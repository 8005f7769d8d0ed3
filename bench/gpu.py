"""``python -m bench gpu``: the GPU tests, the benchmark of every op and the copy roofline, in one result file.

Each step is a process of its own with a time limit: a kernel that hangs, or leaves the device's context broken, costs
its own step. Rows reach the file case by case.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from bench import results
from bench.measure import copy_bandwidth
from kdx.ops import backends

ROOT = Path(__file__).parent.parent
TEST_SECONDS = 240
OP_SECONDS = 300  # softmax_kl compiles its peer anew for every case
TEST_PROCESSES = 8  # most of the tests' time goes into compiling


def run(ops: Sequence[str], out: Path | None = None, commit: str | None = None, without: Collection[str] = ()) -> int:
    """Run the tests and the benchmarks of ``ops``; the exit code: 0, 1 where something failed, 2 without a GPU.

    Args:
        ops: names of benchmarks.
        out: result file; default: ``bench/results/<device>-<date>.csv``. Where the tests fail, its suffix becomes
            ``.red``: such numbers are there to look at, no table is made of them.
        commit: what to write where there is no git checkout.
        without: providers to leave out.

    """
    if not torch.cuda.is_available():
        print("no CUDA device: torch.cuda.is_available() is False; `python -m bench run OP` times a CPU")
        return 2
    start = time.monotonic()
    device = torch.device("cuda", torch.cuda.current_device())
    conditions = results.conditions(device, commit)
    print(*(f"{name}: {value}" for name, value in conditions.items()), sep="\n")
    for name, reason in backends().items():
        print(f"backend {name}: {reason or 'usable'}", flush=True)
    slug = re.sub(r"[^a-z0-9]+", "-", conditions["device"].lower()).strip("-")
    file = (out or results.FOLDER / f"{slug}-{conditions['date']}.csv").resolve()
    failed = _step("the GPU tests", _tests(), TEST_SECONDS, {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
    if failed:
        file = file.with_suffix(".red")
    results.start(file)
    for op in ops:
        command = [sys.executable, "-m", "bench", "run", op, "--device", "cuda", "--seconds", "0.2"]
        command += ["--out", str(file), "--append", *(f"--without={name}" for name in without)]
        failed += _step(f"the benchmark of {op}", command, OP_SECONDS, {"KDX_COMMIT": conditions["commit"]})
    copy = f"{copy_bandwidth(device) / 1e9:.4g}"
    results.append(file, [{"op": "copy", "shape": "1 GiB", "gb_per_s": copy, "copy_gb_per_s": copy} | conditions])
    print(f"{file}, after {time.monotonic() - start:.0f} s")
    for line in failed:
        print(f"FAILED: {line}")
    return 1 if failed else 0


def _tests() -> list[str]:
    """The command of the tests, with the plugins it needs alone: others that are installed there may break it.

    Warnings are shown, but are no errors here: versions of torch and Triton that the tests have not met have their own.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-W", "default", "-p", "pytest_timeout"]
    if importlib.util.find_spec("xdist"):
        command += ["-p", "xdist.plugin", "-n", str(TEST_PROCESSES)]
    return command + sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/ops/test_*_gpu.py"))


def _step(what: str, command: list[str], seconds: float, environment: dict[str, str]) -> list[str]:
    """Run one step; a line of what went wrong, if something did."""
    print(f"--- {what}", flush=True)
    try:
        done = subprocess.run(command, cwd=ROOT, check=False, timeout=seconds, env=os.environ | environment)
    except subprocess.TimeoutExpired:
        return [f"{what}: stopped after {seconds} s"]
    return [] if done.returncode == 0 else [f"{what}: exit code {done.returncode}, see above"]
