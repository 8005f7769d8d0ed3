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
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "seed": seed,
        "git_commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
        "cpu_cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": {name: package_version(name) for name in PACKAGES},
    }


def _commit() -> str | None:
    """The commit of the working directory, ``-dirty`` if a tracked file was touched since; None outside of git.

    Neither call runs what the configuration of a repository says, which may be a stranger's: content is not read, as
    filters would be run on it, nor is a file system monitor asked, or a missing object fetched.
    """
    environment = {**os.environ, "GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "", "GIT_OPTIONAL_LOCKS": "0"}

    def git(*arguments: str) -> str:
        command = ["git", "-c", "core.fsmonitor=false", *arguments]
        try:
            found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        except OSError:  # there is no git
            return ""
        return found.stdout.strip() if found.returncode == 0 else ""

    commit = git("rev-parse", "--verify", "HEAD")
    touched = commit and (
        git("diff-files", "--name-only", "--ignore-submodules=all")
        or git("diff-index", "--cached", "--name-only", "--ignore-submodules=all", "HEAD")
    )
    return f"{commit}-dirty" if touched else commit or None


def package_version(package: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
