"""A run killed again and again at random moments ends where the unbroken one ends; each seed gives a row."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import kdx
from bench.results import conditions
from tests.experiment.tiny import TINY, same, weights

pytestmark = [pytest.mark.slow, pytest.mark.soak]

ROOT = Path(__file__).parents[2]
FILE = ROOT / "bench" / "results" / "soak" / "kills.csv"
SEEDS = range(20)
KILLS = 5
TRAIN = {"epochs": 20, "batch_size": 16}


def write_row(row: dict[str, object]) -> None:
    """Appends a row, with the conditions under which it was found."""
    whole = {**row, **conditions(torch.device("cpu"))}
    FILE.parent.mkdir(parents=True, exist_ok=True)
    new = not FILE.exists()
    with FILE.open("a", newline="") as file:
        writer = csv.DictWriter(file, whole, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(whole)


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_again_and_again_it_ends_where_the_unbroken_run_ends(seed: int, tmp_path: Path) -> None:
    changed = {"seed": seed, "train": TRAIN, "teacher": {**TINY["teacher"], "train": TRAIN}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**TINY, "summary": "soak", **changed}))
    kdx.run(tmp_path / "recipe.yaml", folder=tmp_path / "whole" / "run")

    broken = tmp_path / "broken" / "run"  # with a folder of teachers of its own
    command = [sys.executable, "-m", "kdx", "run", str(tmp_path / "recipe.yaml"), "--folder", str(broken), "--resume"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    moments, kills, amid = random.Random(seed), 0, set()
    begun = time.monotonic()
    while True:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        if kills < KILLS:
            _wait_for_work(process, broken)
            time.sleep(moments.uniform(0, 8))
            process.kill()
        status = process.wait()
        if status == 0:
            break
        assert status == -signal.SIGKILL, f"after {kills} kills, seed {seed}"
        kills += 1
        amid.add(sum(1 for _ in broken.glob("*/result.json")))
    stages = [path.parent.name for path in (tmp_path / "whole" / "run").glob("*/student.safetensors")]
    assert len(stages) == 3
    equal = all(same(weights(tmp_path / "whole" / "run", each), weights(broken, each)) for each in stages)
    row = {"seed": seed, "kills": kills, "stages_at_kills": " ".join(map(str, sorted(amid))), "same_bits": equal}
    write_row({**row, "seconds": round(time.monotonic() - begun, 1)})
    assert equal


def _wait_for_work(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Waits until a process writes into the run's folder: what comes before is the import of torch."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    while process.poll() is None:
        for path in folder.rglob("*"):
            try:
                if path.is_file() and path.stat().st_mtime_ns != before.get(path):
                    return
            except FileNotFoundError:  # a temporary file that was renamed meanwhile
                continue
        time.sleep(0.01)
