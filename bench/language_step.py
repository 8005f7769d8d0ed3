"""Memory and time of one training step of a language model: ``python -m bench.language_step``.

A small Llama learns from a larger one on 1024 tokens of 128,256 classes, soft targets and cross-entropy, in float32 on
one thread: with the logits of both made whole, and with ``kdx.Head`` on both sides. Every measurement is a process of
its own. Memory is the rise of the largest resident set over what the process held before its first step, gradients
included; time is CPU time of the process, which other load on the machine lengthens less than it does the wall time.
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
from typing import Any

import torch
import transformers

import kdx
from bench import results

FILE = Path(__file__).parent / "results" / "language_step" / "cpu.csv"
VOCABULARY, ROWS, LENGTH = 128_256, 4, 256
WIDTHS = {"student": 64, "teacher": 128}
ARMS = ("logits", "head")
COLUMNS = ("arm", "student", "teacher", "tokens", "classes", "peak_mb", "cpu_s", "task", "kd")
CONDITIONS = ("device", "torch", "commit", "date")


def llama(width: int, classes: int = VOCABULARY) -> torch.nn.Module:
    """A Llama of two layers with random weights."""
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=classes, **sizes, **heads))


def scheme(arm: str, student: torch.nn.Module, teacher: torch.nn.Module) -> kdx.Offline:
    """Soft targets and cross-entropy, half each."""
    heads = {"student_output": kdx.Head.of(student), "teacher_output": kdx.Head.of(teacher)} if arm == "head" else {}
    knowledge = {"kd": (0.5, kdx.SoftTargets(temperature=1.0))}
    return kdx.Offline(student, teacher, task=(0.5, kdx.make("task", "causal-lm")), knowledge=knowledge, **heads)


def one(arm: str) -> dict[str, Any]:
    """MB at the peak and CPU seconds of a step, and the terms of its loss."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    small = [llama(width, classes=64) for width in WIDTHS.values()]
    few = torch.randint(64, (1, 8))
    scheme(arm, *small)({"input_ids": few, "labels": few}).total.backward()  # whatever is loaded on first use
    distil = scheme(arm, *(llama(width) for width in WIDTHS.values()))
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH))
    before, times = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(3):
        start = time.process_time()
        losses = distil({"input_ids": ids, "labels": ids})
        losses.total.backward()
        times.append(time.process_time() - start)
        distil.zero_grad(set_to_none=True)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    terms = {name: f"{term.item():.6f}" for name, term in losses.terms.items()}
    return {"peak_mb": round(peak), "cpu_s": round(statistics.median(times), 2), **terms}


def measure() -> None:
    """Writes a row for each arm."""
    conditions = results.conditions(torch.device("cpu"))
    FILE.parent.mkdir(parents=True, exist_ok=True)
    with FILE.open("w", newline="") as file:
        writer = csv.DictWriter(file, (*COLUMNS, *CONDITIONS), lineterminator="\n")
        writer.writeheader()
        for arm in ARMS:
            command = [sys.executable, "-m", "bench.language_step", "--one", arm]
            found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
            row = {"arm": arm, **WIDTHS, "tokens": ROWS * LENGTH, "classes": VOCABULARY, **found}
            writer.writerow(row | {key: conditions[key] for key in CONDITIONS})
            print(
                f"{arm}: {found['peak_mb']} MB, {found['cpu_s']} s, task {found['task']}, kd {found['kd']}", flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", choices=ARMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one)))
    else:
        measure()


if __name__ == "__main__":
    main()
