"""Accuracy against size and latency of derived students, alone and distilled: ``python -m bench students``.

Every run is a recipe in a folder of its own: finished ones are read, one that was stopped is resumed. When all are
there, the models of the first seed are timed in turns and the CSV and the picture are written.
"""

from __future__ import annotations

import csv
import json
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import kdx
from bench import results
from kdx.experiment import check_recipe
from kdx.training import load_weights

FILE = Path(__file__).parent / "results" / "students" / "fashion.csv"
README = Path(__file__).parent / "README.md"
TEACHER = {"name": "convnet", "width": 12, "depth": 2}
STUDENTS = {  # the least that this teacher comes to is 33.6 % by depth and 13.5 % by depth-wise convolutions
    "width": ("50%", "15%"),
    "depth": ("51%", "34%"),
    "depthwise": ("35%", "14%"),
    "low-rank": ("50%", "15%"),
}
ARMS = ("alone", "distilled")
SGD = {"name": "SGD", "momentum": 0.9, "nesterov": True}
CYCLE = {"name": "OneCycleLR", "pct_start": 0.2, "cycle_momentum": False}
COLUMNS = (
    *("how", "budget", "arm", "seed", "accuracy", "parameters", "flops"),
    *("latency_ms", "latency_p20_ms", "latency_p80_ms", "device", "torch", "commit", "date"),
)


def recipe(how: str, budget: str, seed: int, epochs: int) -> dict[str, Any]:
    """500 labels for the student, 4,500 for its teacher, on the embedded images."""
    return {
        "seed": seed,
        "threads": 1,
        "data": {"dataset": {"name": "fashion-mnist"}, "validation": 500, "labelled": 500},
        "teacher": {
            "model": TEACHER,
            "train": {
                "epochs": 7,
                "batch_size": 128,
                "optimizer": {**SGD, "lr": 0.1, "weight_decay": 2e-3},
                "schedule": {**CYCLE, "max_lr": 0.1},
            },
        },
        "student": {"model": {"name": "derived", "how": how, "params": budget}},
        "task": {"weight": 0.1},
        "knowledge": {"kd": {"name": "soft-targets", "weight": 0.9, "temperature": 4.0}},
        "train": {
            "epochs": epochs,
            "batch_size": 64,
            "optimizer": {**SGD, "lr": 0.05, "weight_decay": 5e-4},
            "schedule": {**CYCLE, "max_lr": 0.05},
        },
    }


def run(folder: Path, seeds: Sequence[int], epochs: int) -> None:
    """Runs what is left to run, then writes the rows and the picture."""
    found = {}
    for seed in seeds:
        for how, budgets in STUDENTS.items():
            for budget in budgets:
                place = folder / f"seed-{seed}" / f"{how}-{budget.rstrip('%')}"
                start = time.monotonic()
                summary = kdx.run(check_recipe(recipe(how, budget, seed, epochs)), folder=place, resume=True)
                found[how, budget, seed] = summary["stages"]
                shown = {arm: f"{100 * summary['stages'][arm]['test']['accuracy']:.2f}" for arm in ("teacher", *ARMS)}
                print(f"seed {seed} {how} {budget}: {shown}, {time.monotonic() - start:.0f} s", flush=True)
    times = _times(folder / f"seed-{seeds[0]}")
    conditions = results.conditions(torch.device("cpu"))
    rows = []
    for (how, budget, seed), stages in found.items():
        for arm in ARMS:
            rows.append(_row(how, budget, arm, seed, stages[arm], times[how, budget]))
        if (how, budget) == next(iter(found))[:2]:
            rows.append(_row("teacher", "100%", "alone", seed, stages["teacher"], times["teacher", "100%"]))
    FILE.parent.mkdir(parents=True, exist_ok=True)
    with FILE.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | {key: conditions[key] for key in COLUMNS if key in conditions} for row in rows)
    document()


def document() -> None:
    """The picture, and the table in bench/README.md, from the rows that are there."""
    draw()
    text = README.read_text()
    begin, end = "<!-- students: python -m bench students -->", "<!-- end of students -->"
    new = re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{table()}\n{end}", text, flags=re.DOTALL)
    README.write_text(new)


def _row(how: str, budget: str, arm: str, seed: int, stage: dict[str, Any], times: list[float]) -> dict[str, Any]:
    fifths = statistics.quantiles(times, n=5)
    return {
        "how": how,
        "budget": budget,
        "arm": arm,
        "seed": seed,
        "accuracy": round(100 * stage["test"]["accuracy"], 2),
        "parameters": stage["parameters"],
        "flops": stage["flops"],
        "latency_ms": round(statistics.median(times), 4),
        "latency_p20_ms": round(fifths[0], 4),
        "latency_p80_ms": round(fifths[3], 4),
    }


def _times(folder: Path, rounds: int = 100, repeats: int = 10) -> dict[tuple[str, str], list[float]]:
    """Milliseconds of one image on one thread; all models take turns, so that load on the machine meets all alike.

    It is the CPU time of the process, which other programs lengthen less than the time on the wall.
    """
    torch.set_num_threads(1)
    image = torch.zeros(1, 1, 28, 28)
    models: dict[tuple[str, str], nn.Module] = {}
    for how, budgets in STUDENTS.items():
        for budget in budgets:
            place = folder / f"{how}-{budget.rstrip('%')}"
            models.setdefault(("teacher", "100%"), _load(place, "teacher", TEACHER))
            made = json.loads((place / "distilled" / "model.json").read_text())
            models[how, budget] = _load(place, "distilled", made["model"])
    times: dict[tuple[str, str], list[float]] = {key: [] for key in models}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for key, model in models.items():
                start = time.process_time()
                for _ in range(repeats):
                    model(image)
                if turn:  # the first one warms up
                    times[key].append(1e3 * (time.process_time() - start) / repeats)
    return times


def _load(place: Path, stage: str, model: dict[str, Any]) -> nn.Module:
    found: nn.Module = kdx.make("model", kdx.Ref.of(model), num_classes=10, input_shape=(1, 28, 28))
    load_weights(found, place / stage / "student.safetensors")
    return found.eval()


def draw() -> None:
    """The picture, from the committed rows."""
    from matplotlib.figure import Figure

    with FILE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    colours = dict(zip(STUDENTS, ("tab:blue", "tab:orange", "tab:green", "tab:red"), strict=True))
    for axes, column, label in (
        (left, "parameters", "parameters"),
        (right, "latency_ms", "latency of one image, ms of CPU time"),
    ):
        for how, colour in {"teacher": "black", **colours}.items():
            for arm in ARMS:
                mine = [row for row in rows if row["how"] == how and row["arm"] == arm]
                points = [
                    _point([row for row in mine if row["budget"] == budget], column)
                    for budget in dict.fromkeys(row["budget"] for row in mine)
                ]
                if points:
                    _draw_arm(axes, sorted(points), how, arm, colour)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    left.set_xscale("log")
    left.set_ylabel("test accuracy, %")
    figure.legend(*right.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(FILE.with_suffix(".png"), dpi=110)


def _point(rows: Sequence[dict[str, str]], column: str) -> tuple[float, float, float, float, float]:
    """Cost, its 20 and 80 percentile, mean accuracy over the seeds and its standard deviation."""
    accuracies = [float(row["accuracy"]) for row in rows]
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    cost = statistics.mean(float(row[column]) for row in rows)
    low, high = cost, cost
    if column == "latency_ms":
        low, high = float(rows[0]["latency_p20_ms"]), float(rows[0]["latency_p80_ms"])
    return cost, low, high, statistics.mean(accuracies), spread


def _draw_arm(axes: Any, points: Sequence[tuple[float, ...]], how: str, arm: str, colour: str) -> None:
    cost, low, high, mean, spread = zip(*points, strict=True)
    distilled = arm == "distilled"
    axes.errorbar(
        cost,
        mean,
        yerr=spread,
        xerr=[[a - b for a, b in zip(cost, low, strict=True)], [b - a for a, b in zip(cost, high, strict=True)]],
        fmt="*" if how == "teacher" else "o-" if distilled else "s--",
        markersize=13 if how == "teacher" else 5,
        markerfacecolor=colour if distilled or how == "teacher" else "none",
        color=colour,
        capsize=2,
        linewidth=1,
        label=how if how == "teacher" else f"{how}, {arm}",
    )


def table() -> str:
    """Mean and standard deviation over the seeds, as Markdown."""
    with FILE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [
        "| student | parameters | MFLOPs | latency, ms (20 - 80 %) | alone | distilled |",
        "|---|---|---|---|---|---|",
    ]
    for how, budget in dict.fromkeys((row["how"], row["budget"]) for row in rows):
        mine = [row for row in rows if (row["how"], row["budget"]) == (how, budget)]
        first = mine[0]
        cells = []
        for arm in ARMS:
            of_arm = [row for row in mine if row["arm"] == arm]
            point = _point(of_arm, "parameters") if of_arm else None
            cells.append(f"{point[3]:.2f} ± {point[4]:.2f}" if point else "")
        latency = f"{float(first['latency_ms']):.3g} ({first['latency_p20_ms']} - {first['latency_p80_ms']})"
        size = f"{int(first['parameters']):,} | {int(first['flops']) / 1e6:.2f} | {latency}"
        lines.append(f"| {how}, {budget} | {size} | {' | '.join(cells)} |")
    return "\n".join(lines)
