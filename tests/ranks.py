"""Two processes that train together, as torchrun starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import kdx


def on_two_ranks(code: str, *arguments: str, **environment: str) -> list[str]:
    """The last line that each of two ranks prints; ``sys.argv`` of ``code`` holds its rank and the arguments."""
    launched = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}  # what torchrun sets
    shared = os.environ | launched | {"PYTHONPATH": str(Path(kdx.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), *arguments],
            env=shared | environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    finished = [(process, *process.communicate(timeout=120)) for process in started]
    assert all(process.returncode == 0 for process, _, _ in finished), [errors for _, _, errors in finished]
    return [out.splitlines()[-1] for _, out, _ in finished]
