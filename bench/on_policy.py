"""A student taught on what it writes itself against one that is taught on the data: ``python -m bench on-policy``.

The language is English words, a letter a token; a teacher is trained on them, and a student that has read some goes on
in three ways, from the same weights: taught on the data's words, on its own, and on the data's for as long as its own
took, by the CPU time of the process.
"""

from __future__ import annotations

import copy
import csv
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import kdx
from bench import results
from kdx.datasets import Rollouts, WordStress
from kdx.knowledge import ReverseKL
from kdx.models import TokenDecoder
from kdx.schemes import OnPolicy
from kdx.tasks import CausalLM

FILE = Path(__file__).parent / "results" / "on-policy" / "words.csv"
PAD, END, LETTERS, LENGTH, PROMPT = 0, 1, "abcdefghijklmnopqrstuvwxyz", 15, 2
CLASSES = 2 + len(LETTERS)
ARMS = ("start", "off-policy", "on-policy", "off-policy, as long")
METRICS = ("cross_entropy", "reverse_kl", "words")
COLUMNS = ("seed", "arm", "steps", "cpu_seconds", *METRICS, "device", "torch", "commit", "date")
OPTIONS = {"task": (0.0, CausalLM()), "beta": 0.5, "max_new_tokens": LENGTH - PROMPT, "ends": [END]}


def words(split: str) -> list[str]:
    """The words of a split that are letters alone and fit into a row."""
    fits = (word for word in WordStress(split).words if set(word) <= set(LETTERS) and 4 <= len(word) < LENGTH)
    return sorted(set(fits))


def rows(found: Sequence[str]) -> TensorDataset:
    """Ids ``[N, 15]`` of words with their end, and targets, ``-100`` in the first two letters and behind the end."""
    ids = torch.full((len(found), LENGTH), PAD)
    for row, word in enumerate(found):
        ids[row, : len(word) + 1] = torch.tensor([*(2 + LETTERS.index(letter) for letter in word), END])
    targets = ids.masked_fill(ids == PAD, -100)
    targets[:, :PROMPT] = -100
    return TensorDataset(ids, targets)


def decoder(dim: int, depth: int, seed: int) -> TokenDecoder:
    torch.manual_seed(seed)
    return TokenDecoder(dim, depth=depth, num_classes=CLASSES, input_shape=(LENGTH + 1,))


def train(scheme: kdx.Scheme, data: TensorDataset, steps: int, seed: int, lr: float) -> float:
    """Trains for some steps of 64 words; returns the CPU seconds that they took."""
    loader = DataLoader(data, 64, shuffle=True, drop_last=True)
    began = time.process_time()
    optimizer = {"name": "AdamW", "lr": lr}
    kdx.fit(scheme, loader, steps=steps, optimizer=optimizer, seed=seed, device="cpu", progress=False)
    return time.process_time() - began


def measure(student: nn.Module, teacher: nn.Module, test: TensorDataset, known: set[str]) -> dict[str, float]:
    """Nats per token of unseen words; of what the student writes after their beginnings the reverse KL per token from
    the teacher, and the share that are words.
    """
    student.eval()
    judge = OnPolicy(student, teacher, **OPTIONS, knowledge={"kd": ReverseKL(1.0)})
    sampled = {"max_new_tokens": LENGTH - PROMPT, "ends": [END], "pad": PAD, "seed": 1}
    written: list[str] = []
    total, tokens = 0.0, 0.0
    with torch.no_grad():
        for batch in Rollouts(DataLoader(test, 500), student, **sampled):
            losses = judge(batch)
            total += float(losses.terms["kd"] * losses.counts["kd"])
            tokens += float(losses.counts["kd"])
            written += [spelt(row) for row in batch.inputs]
        ids, targets = test.tensors
        cross_entropy = float(CausalLM()(student(ids), targets))
    share = sum(word in known for word in written) / len(written)
    return {"cross_entropy": cross_entropy, "reverse_kl": total / tokens, "words": share}


def spelt(ids: Tensor) -> str:
    """The letters of a row up to its end, "" for one without."""
    text = ids.tolist()
    return "".join(LETTERS[each - 2] for each in text[: text.index(END)] if each >= 2) if END in text else ""


def run(seeds: Sequence[int], steps: int = 200) -> None:
    """Trains a teacher and the students of every seed, and writes the rows."""
    torch.set_num_threads(1)
    data, test = rows(words("train")), rows(words("test")[:1000])
    known = {*words("train"), *words("test")}
    conditions = results.conditions(torch.device("cpu"))
    FILE.parent.mkdir(parents=True, exist_ok=True)
    with FILE.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for seed in seeds:
            for row in _seed(seed, steps, data, test, known):
                writer.writerow(row | {key: conditions[key] for key in COLUMNS if key in conditions})
                file.flush()
                print(row, flush=True)


def _seed(
    seed: int, steps: int, data: TensorDataset, test: TensorDataset, known: set[str]
) -> list[dict[str, float | str]]:
    teacher, student = decoder(64, 2, 100 + seed), decoder(16, 1, seed)
    train(kdx.Supervised(teacher, task=CausalLM()), data, 3 * steps, seed, 3e-3)
    train(kdx.Supervised(student, task=CausalLM()), data, steps // 2, seed, 1e-2)
    found: list[dict[str, float | str]] = []
    spent: dict[str, float] = {}
    taken = {"teacher": 0, "start": 0, "off-policy": steps, "on-policy": steps}
    for arm in ("teacher", *ARMS):
        if arm == ARMS[-1]:
            taken[arm] = round(steps * spent["on-policy"] / spent["off-policy"])
        learner = copy.deepcopy(teacher if arm == "teacher" else student)
        spent[arm] = 0.0
        if taken[arm]:
            scheme = OnPolicy(learner, teacher, **OPTIONS, share=float(arm == "on-policy"))
            spent[arm] = train(scheme, data, taken[arm], seed, 3e-3)
        shown = {name: round(value, 4) for name, value in measure(learner, teacher, test, known).items()}
        found.append({"seed": seed, "arm": arm, "steps": taken[arm], "cpu_seconds": round(spent[arm], 1), **shown})
    return found


def table() -> str:
    """The committed rows: means over the seeds with standard deviations, and paired differences from on-policy."""
    with FILE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    seeds = sorted({row["seed"] for row in rows})
    value = {(row["seed"], row["arm"], name): float(row[name]) for row in rows for name in METRICS}
    lines = [
        "| arm | steps | CPU s | nats per token, unseen words | reverse KL per token, own text | own text: words, % |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for arm in ("teacher", *ARMS):
        mine = [row for row in rows if row["arm"] == arm]
        numbers = [_shown([value[seed, arm, name] for seed in seeds], name) for name in METRICS]
        steps = round(statistics.mean(int(row["steps"]) for row in mine))
        seconds = statistics.mean(float(row["cpu_seconds"]) for row in mine)
        lines.append(f"| {arm} | {steps} | {seconds:.0f} | {' | '.join(numbers)} |")
    for arm in (ARMS[1], ARMS[3]):
        each = {name: [value[seed, "on-policy", name] - value[seed, arm, name] for seed in seeds] for name in METRICS}
        better = [sum(d > 0 if name == "words" else d < 0 for d in each[name]) for name in METRICS]
        numbers = [
            f"{_shown(each[name], name, sign='+')}, {count} of {len(seeds)} better"
            for name, count in zip(METRICS, better, strict=True)
        ]
        lines.append(f"| on-policy less {arm} | | | {' | '.join(numbers)} |")
    return "\n".join(lines)


def _shown(values: Sequence[float], name: str, sign: str = "") -> str:
    scale, digits = (100, 2) if name == "words" else (1, 4)
    mean, spread = scale * statistics.mean(values), scale * statistics.stdev(values)
    return f"{mean:{sign}.{digits}f} ± {spread:.{digits}f}"
