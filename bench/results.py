"""Result files: CSV, one row per measurement, everything needed to read a row in the row itself."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

FOLDER = Path(__file__).parent / "results"
COLUMNS = [
    *("op", "shape", "dtype", "data", "pass", "provider", "threads", "median_ms", "p20_ms", "p80_ms"),
    *("gb_per_s", "share_of_copy", "copy_gb_per_s", "peak_mb", "loss_error", "grad_error", "x"),
    *("device", "torch", "triton", "commit", "date"),
]


def conditions(device: torch.device, commit: str | None = None) -> dict[str, str]:
    """The columns that are the same for a whole run."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = ""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "torch": torch.__version__,
        "triton": triton,
        "commit": commit or os.environ.get("KDX_COMMIT") or current_commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def cpu_name() -> str:
    """The processor's name and what of it this machine has."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        name = found.group(1).strip()
    return f"{name}, {os.cpu_count()} cores"


def current_commit() -> str:
    """The checked-out commit, with a mark where files differ from it; "unknown" outside a checkout."""
    if shutil.which("git") is None:
        return "unknown"
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def start(path: Path) -> None:
    """Begin a result file: its header; a file that is there is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.DictWriter(file, COLUMNS, lineterminator="\n").writeheader()


def append(path: Path, rows: list[dict[str, object]]) -> None:
    """Add rows to a result file that was begun: a run that is stopped loses the case at hand, not those before."""
    with path.open("a", newline="") as file:
        csv.DictWriter(file, COLUMNS, lineterminator="\n").writerows(rows)


def read_all() -> list[dict[str, str]]:
    """Every committed row, in the order of the files' names."""
    rows: list[dict[str, str]] = []
    for path in sorted(FOLDER.glob("*.csv")):
        with path.open(newline="") as file:
            rows += csv.DictReader(file)
    return rows
