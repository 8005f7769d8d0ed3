"""Accuracy against operations of pruned students and controls: ``python plugins/kdx-prune/bench/fashion.py FOLDER``.

For every seed one experiment: the teacher of the recipe ``fashion-prune``, then at 50, 25 and 10 % of its operations

- ``pruned``: channels by activation, as the recipe has it, the teacher's weights kept;
- ``scratch``: the same structure, its weights drawn anew;
- ``width``: the default derivation, the same share of every layer by the norm of filters, the teacher's weights kept;

All are distilled from the teacher alike. Finished seeds are read, one that was stopped is resumed. The CSV, the picture
and the table in the README are written at the end; without a folder, from the rows that are there.
"""

from __future__ import annotations

import csv
import math
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import kdx_prune.plugin
import torch
from kdx_prune.pruned import Pruned

import kdx
from kdx import Assistant, Ref, Spec, Stage
from kdx.experiment import load_recipe

PACKAGE = Path(__file__).parents[1]
FILE = PACKAGE.parents[1] / "bench" / "results" / "prune" / "fashion.csv"
README = PACKAGE / "README.md"
RECIPE = PACKAGE / "kdx_prune" / "recipes" / "fashion-prune.yaml"
SHARES, ARMS, SEEDS = (50, 25, 10), ("pruned", "scratch", "width"), range(5)
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Number of pairs -> the factor of a two-sided 95 % interval of Student's t."""


class Comparison(Assistant):
    """The students of one seed, all taught by the teacher; the last one is named ``distilled``, as a plan's must be."""

    def plan(self, teacher: Ref, student: Ref) -> list[Stage]:
        """See :meth:`kdx.Assistant.plan`."""
        how, stages = student.options["how"], []
        for share in SHARES:
            budget = {"flops": f"{share}%"}
            pruned = Pruned([{"how": how, **budget}])
            made = {
                "pruned": pruned,
                "scratch": Pruned(pruned.cuts, inherit=False),
                "width": Pruned([{"how": "width", **budget}]),
            }
            stages += [Stage(f"{arm}-{share}", "assistant", model, ("teacher",)) for arm, model in made.items()]
        return [*stages[:-1], Stage("distilled", "distilled", stages[-1].model, ("teacher",))]


class Plugin:
    """Makes the comparison an assistant."""

    @kdx.hookimpl
    def kdx_assistants(self) -> list[Spec]:
        """The one of this file."""
        return [Spec("prune-comparison", f"{__name__}:Comparison", "pruned students and their controls")]


def run(folder: Path) -> None:
    """Runs the seeds that are left, then writes the rows."""
    plugins = kdx.plugins()
    plugins.register(Plugin(), "prune-comparison")
    if "prune" not in plugins.components("student"):
        plugins.register(kdx_prune.plugin, "prune")
    rows = []
    for seed in SEEDS:
        recipe = load_recipe(
            RECIPE, {"seed": seed, "threads": 1, "controls": [], "assistant": {"name": "prune-comparison"}}
        )
        summary = kdx.run(recipe, folder=folder / f"seed-{seed}", resume=True, report=False)
        stages = summary["stages"]
        rows.append(_row("teacher", 100, seed, stages["teacher"]))
        for name, stage in stages.items():
            if name == "distilled":
                rows.append(_row(ARMS[-1], SHARES[-1], seed, stage))
            elif (arm := name.partition("-")[0]) in ARMS:
                rows.append(_row(arm, int(name.partition("-")[2]), seed, stage))
        FILE.parent.mkdir(parents=True, exist_ok=True)
        with FILE.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        print(f"seed {seed}: {[(row['arm'], row['share'], row['accuracy']) for row in rows if row['seed'] == seed]}")


def _row(arm: str, share: int, seed: int, stage: dict[str, Any]) -> dict[str, Any]:
    return {
        "arm": arm,
        "share": share,
        "seed": seed,
        "accuracy": round(100 * stage["test"]["accuracy"], 2),
        "parameters": stage["parameters"],
        "flops": stage["flops"],
        "torch": torch.__version__,
    }


def _rows() -> dict[tuple[str, int], dict[int, dict[str, float]]]:
    found: dict[tuple[str, int], dict[int, dict[str, float]]] = {}
    with FILE.open(newline="") as file:
        for row in csv.DictReader(file):
            values = {key: float(row[key]) for key in ("accuracy", "parameters", "flops")}
            found.setdefault((row["arm"], int(row["share"])), {})[int(row["seed"])] = values
    return found


def table() -> str:
    """Means with standard deviations over the seeds, and paired differences with 95 % intervals, as Markdown."""
    rows = _rows()
    whole = _mean(rows["teacher", 100], "flops")
    lines = [
        "| student | FLOPs | parameters | accuracy, % | pruned minus this one (95 %) |",
        "|---|---|---|---|---|",
    ]
    for (arm, share), seeds in sorted(
        rows.items(), key=lambda item: (-item[0][1], ("teacher", *ARMS).index(item[0][0]))
    ):
        values = [one["accuracy"] for one in seeds.values()]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        own = rows.get(("pruned", share), {})
        pairs = [own[seed]["accuracy"] - one["accuracy"] for seed, one in seeds.items() if seed in own]
        paired = "" if arm in ("teacher", "pruned") else _interval(pairs)
        flops = f"{100 * _mean(seeds, 'flops') / whole:.1f} %"
        lines.append(
            f"| {arm}{'' if arm == 'teacher' else f', {share} %'} | {flops} | {_mean(seeds, 'parameters'):,.0f} "
            f"| {statistics.mean(values):.2f}{spread} | {paired} |"
        )
    return "\n".join(lines)


def _mean(seeds: dict[int, dict[str, float]], key: str) -> float:
    return statistics.mean(one[key] for one in seeds.values())


def _interval(pairs: list[float]) -> str:
    if len(pairs) < 2:
        return ""
    half = T95[len(pairs)] * statistics.stdev(pairs) / math.sqrt(len(pairs))
    return f"{statistics.mean(pairs):+.2f} ± {half:.2f}"


def draw() -> None:
    """The picture, from the committed rows."""
    from matplotlib.figure import Figure

    rows = _rows()
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for arm, colour, style in zip(
        ("teacher", *ARMS), ("black", "tab:blue", "tab:orange", "tab:green"), ("*", "o-", "s--", "^-"),
        strict=True,
    ):  # fmt: skip
        points = sorted((_mean(seeds, "flops") / 1e6, seeds) for (name, _), seeds in rows.items() if name == arm)
        accuracies = [[one["accuracy"] for one in seeds.values()] for _, seeds in points]
        axes.errorbar(
            [cost for cost, _ in points],
            [statistics.mean(values) for values in accuracies],
            yerr=[statistics.stdev(values) if len(values) > 1 else 0.0 for values in accuracies],
            fmt=style,
            color=colour,
            capsize=2,
            label=arm,
        )
    axes.set_xscale("log")
    axes.set_xlabel("operations of one image, millions")
    axes.set_ylabel("test accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(FILE.with_suffix(".png"), dpi=110)


def document() -> None:
    """The picture, and the table in the README."""
    draw()
    begin, end = "<!-- bench/fashion.py -->", "<!-- end -->"
    text = re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{table()}\n{end}", README.read_text(), flags=re.DOTALL)
    README.write_text(text)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run(Path(sys.argv[1]))
    document()
