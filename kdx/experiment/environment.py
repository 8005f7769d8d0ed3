"""The environment of a run: versions, machine and seed, on which a result depends beside its recipe."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import torch

__all__ = ["environment", "package_version"]

PACKAGES = ("kdx", "torch", "accelerate", "numpy", "torchmetrics", "pluggy", "triton")


def environment(seed: int) -> dict[str, Any]:
    """Versions, device, seed, commit of the working directory and command line, as plain values."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"], capture_output=True, text=True, check=False
    )
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "seed": seed,
        "git_commit": commit.stdout.strip() or None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
        "cpu_cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": {name: package_version(name) for name in PACKAGES},
    }


def package_version(package: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
