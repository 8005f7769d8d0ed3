"""The worth of a search: its student against random search and the default student of the same size, paired by seed.

``python -m kdx_search.compare fashion-search --seeds 0,1,2 --folder searches/compared`` writes a line of JSON per arm
and seed, and prints the table of the README.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from kdx.experiment import load_recipe, run
from kdx_search.joint import search
from kdx_search.search_recipe import changes_of, load_search

__all__ = ["compare", "table"]

ARMS = {
    "search": "searched, TPE",
    "random": "searched, at random, as many operations",
    "width": "`width` of the teacher, as costly, the recipe's transfer",
    "width, longer": "the same, trained for as many operations as search and student took",
}


def compare(recipe: str | Path, seeds: Sequence[int], folder: Path, **overrides: Any) -> list[dict[str, Any]]:
    """Runs a search and its controls for each seed; all of a seed share the split, the teacher and the order of rows.

    The controls get what the search got: random search the operations of its trials, ``width, longer`` those of its
    trials and of the chosen student's distillation. Arms that are finished are read.

    Args:
        recipe: see :func:`kdx_search.search`; its cost must be ``flops``.
        seeds: the recipe's.
        folder: of all of them.
        **overrides: keys of the recipe.

    Returns:
        A row per arm and seed: ``arm``, ``seed``, ``quality`` on the test rows, ``flops`` of the student, ``compute``
        (operations of training, those of the search included), ``trials``.
    """
    rows = []
    for seed in seeds:
        given = {**overrides, "seed": seed, "controls": []}
        place = folder / f"seed-{seed}"
        found = _searched(recipe, place / "search", given)
        rows.append({"arm": "search", "seed": seed, **_row(found)})
        limit = {"search.sampler": "random", "search.compute": found["compute"]["flops"], "search.trials": 10_000}
        rows.append({"arm": "random", "seed": seed, **_row(_searched(recipe, place / "random", given | limit))})
        student = found["run"]["stages"]["distilled"]
        for arm, most in (("width", 0.0), ("width, longer", found["compute"]["flops"])):
            where = place / arm.replace(", ", "-")
            rows.append({"arm": arm, "seed": seed, **_width(recipe, where, given, student, most)})
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def _searched(recipe: str | Path, place: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    def notify(message: str) -> None:
        print(f"{place.name}: {message}", file=sys.stderr, flush=True)

    return search(recipe, folder=place, resume=True, notify=notify, report=False, **given)


def _row(found: Mapping[str, Any]) -> dict[str, Any]:
    student = found["run"]["stages"]["distilled"]
    return {
        "quality": student["test"][found["metric"]],
        "flops": student["flops"],
        "compute": found["compute"]["flops"] + student["compute"]["flops"],
        "trials": found["compute"]["trials"],
    }


def _width(
    recipe: str | Path, place: Path, given: Mapping[str, Any], student: Mapping[str, Any], more: float
) -> dict[str, Any]:
    """The teacher's ``width`` student of the searched one's cost, under the recipe's own transfer.

    Args:
        recipe: of the search.
        place: where it runs.
        given: overrides of the recipe.
        student: the result of the searched one.
        more: operations that its training may take beyond those of the searched student's.
    """
    search = load_search(recipe, given)
    whole = load_recipe(search.sections, plugins=search.plugins)
    epoch = student["compute"]["flops"] / whole.train.epochs
    changes = {
        "student.model": {"name": "derived", "how": "width", "flops": student["flops"]},
        "train.epochs": whole.train.epochs + round(more / epoch),
    }
    summary = run(
        load_recipe(search.sections, changes, plugins=search.plugins),
        folder=place,
        resume=True,
        progress=False,
        report=False,
        plugins=search.plugins,
    )
    stage = summary["stages"]["distilled"]
    found = {"quality": stage["test"][summary["metric"]], "flops": stage["flops"]}
    return {**found, "compute": stage["compute"]["flops"], "trials": 0}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table in Markdown: mean and standard deviation over seeds, and the paired difference of the search
    to each arm with its 95 % interval (Student's t).
    """
    from scipy import stats

    by = {arm: {row["seed"]: row for row in rows if row["arm"] == arm} for arm in ARMS}
    seeds = sorted(by["search"])
    head = "| student | test, % | operations | operations of training | search minus this, points |"
    lines = [head, "|---|---|---|---|---|"]
    for arm, shown in ARMS.items():
        values = [100 * by[arm][seed]["quality"] for seed in seeds]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        flops, compute = (statistics.mean(by[arm][seed][key] for seed in seeds) for key in ("flops", "compute"))
        gains = [100 * by["search"][seed]["quality"] - value for seed, value in zip(seeds, values, strict=True)]
        shown_gain = ""
        if arm != "search" and len(gains) > 1:
            half = stats.t.ppf(0.975, len(gains) - 1) * statistics.stdev(gains) / len(gains) ** 0.5
            better = f"{sum(gain > 0 for gain in gains)} of {len(gains)}"
            shown_gain = f"{statistics.mean(gains):+.2f} ± {half:.2f}, {better}"
        cells = [shown, f"{statistics.mean(values):.2f} ± {spread:.2f}", f"{flops:,.0f}", f"{compute:.2g}", shown_gain]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _main(
    recipe: str,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...")] = None,
    seeds: Annotated[str, typer.Option(help="As 0,1,2.")] = "0,1,2",
    folder: Annotated[Path, typer.Option(help="Where to write.")] = Path("searches/compared"),
) -> None:
    """Compare a search with its controls."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = compare(recipe, [int(seed) for seed in seeds.split(",")], folder, **changes_of(overrides or []))
    typer.echo(table(rows))


if __name__ == "__main__":
    typer.run(_main)
