"""Measures what SmolLM2 adds to the students of ``shakespeare-lm`` when it reads what they write themselves.

Each distilled student of a run goes on from its weights in three ways: on the lines of Shakespeare that it learned
from, on its own continuations of their first halves, and on the lines again for as long as its own took, in CPU time
of the process. The loss is the JSD from the teacher, live, over the second halves alone; the test is of plays that
neither saw::

    kdx run shakespeare-lm --seeds 0,1,2 --folder runs/shakespeare-lm
    python plugins/kdx-text/measure_on_policy.py runs/shakespeare-lm/seed-0 runs/shakespeare-lm/seed-1 ...
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from pathlib import Path

import torch
from kdx_text.shakespeare import Shakespeare
from kdx_text.smollm2 import smollm2
from torch import nn
from torch.utils.data import DataLoader

import kdx
from kdx.datasets import Rollouts
from kdx.schemes import OnPolicy

LENGTH, PROMPT, NEW, ROWS = 64, 32, 31, 8
METRICS = ("cross_entropy", "bits_per_byte", "reverse_kl")


def loader(split: str, rows: int, seed: int | None = None) -> DataLoader:
    """Batches of ``[8, 64]`` tokens; with a seed shuffled by it."""
    data = Shakespeare(split, length=LENGTH, packed=False, limit=rows)
    order = None if seed is None else torch.Generator().manual_seed(seed)
    return DataLoader(data, ROWS, shuffle=seed is not None, generator=order, drop_last=True)


def taught(student: nn.Module, teacher: nn.Module, share: float, steps: int, seed: int) -> float:
    """Trains for some steps; returns the CPU seconds that they took."""
    scheme = OnPolicy(student, teacher, beta=0.5, share=share, prompt=PROMPT, max_new_tokens=NEW, ends=[0], seed=seed)
    began = time.process_time()
    optimizer = kdx.Ref("AdamW", lr=5e-4)
    rows = loader("train", 240, seed)
    kdx.fit(scheme, rows, steps=steps, optimizer=optimizer, seed=seed, device="cpu", progress=False)
    return time.process_time() - began


def judged(student: nn.Module, teacher: nn.Module) -> dict[str, float]:
    """Nats per token and bits per byte of unseen plays; the reverse KL per token from the teacher on own text."""
    test = loader("test", 120)
    task = kdx.make("task", "causal-lm", token_bytes=test.dataset.token_bytes)
    found = kdx.training.evaluate(student, test, metrics=task.metrics)
    judge = OnPolicy(student, teacher, beta=1.0, prompt=PROMPT, ends=[0])
    written = Rollouts(loader("test", 48), student, prompt=PROMPT, max_new_tokens=NEW, ends=[0], seed=1)
    student.eval()
    total = count = 0.0
    with torch.no_grad():
        for batch in written:
            losses = judge(batch)
            total += float(losses.terms["kd"] * losses.counts["kd"])
            count += float(losses.counts["kd"])
    return {name: found[name] for name in METRICS[:2]} | {"reverse_kl": total / count}


def main() -> None:
    """Prints a row for each run and arm, and the paired differences of on-policy from the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    teacher = smollm2(input_shape=(LENGTH,))
    every: dict[str, list[dict[str, float]]] = {}
    for seed, run in enumerate(options.runs):
        start = kdx.load(run).model
        spent: dict[str, float] = {}
        for arm in ("start", "off-policy", "on-policy", "off-policy, as long"):
            steps = 0 if arm == "start" else options.steps
            if arm == "off-policy, as long":
                steps = round(options.steps * spent["on-policy"] / spent["off-policy"])
            student = copy.deepcopy(start)
            spent[arm] = taught(student, teacher, float(arm == "on-policy"), steps, seed) if steps else 0.0
            found = judged(student, teacher)
            every.setdefault(arm, []).append(found)
            numbers = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
            print(f"{run.name}, {arm}: {steps} steps, {spent[arm]:.0f} CPU s, {numbers}", flush=True)
    for arm in ("off-policy", "off-policy, as long"):
        for name in METRICS:
            each = [mine[name] - other[name] for mine, other in zip(every["on-policy"], every[arm], strict=True)]
            spread = f"{statistics.stdev(each):.4f}" if len(each) > 1 else "one run"
            print(f"on-policy less {arm}, {name}: {statistics.mean(each):+.4f}, standard deviation {spread}")


if __name__ == "__main__":
    main()
