"""The picture of a search: quality against cost of every trial, the front and the chosen one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdx.authoring import atomic_write
from kdx.experiment import Quality
from kdx_search.pricing import UNIT

__all__ = ["draw_front"]


def draw_front(summary: Mapping[str, Any], path: Path) -> None:
    """Draws the trials of a search, those that were ended early too, the front and the chosen one.

    Args:
        summary: what :func:`kdx_search.search` returns.
        path: of the PNG file.
    """
    from matplotlib.figure import Figure

    quality, trials = Quality.read(summary), {each["number"]: each for each in summary["trials"]}
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for state, marker, label in (("complete", "o", "tried"), ("pruned", "x", "ended early")):
        points = [each for each in trials.values() if each["state"] == state and each["cost"] is not None]
        values = [
            each["quality"] if state == "complete" else (each["quality_by_epoch"] or [None])[-1] for each in points
        ]
        shown = [(each["cost"], quality.scaled(y)) for each, y in zip(points, values, strict=True) if y is not None]
        if shown:
            axes.scatter(*zip(*shown, strict=True), marker=marker, color="#888888", label=label)
    front = [trials[number] for number in summary["front"] if number in trials]
    axes.step(
        [each["cost"] for each in front],
        [quality.scaled(each["quality"]) for each in front],
        where="post",
        marker="o",
        color="#1f77b4",
        label="front",
    )
    if summary["chosen"] in trials:
        chosen = trials[summary["chosen"]]
        place = (chosen["cost"], quality.scaled(chosen["quality"]))
        axes.scatter(*place, marker="*", s=220, color="#d62728", zorder=3, label=f"chosen, trial {summary['chosen']}")
    axes.set_xscale("log")
    axes.set_xlabel(UNIT[summary["cost"]])
    axes.set_ylabel(f"{quality.metric_label} on validation{quality.unit}")
    axes.set_title(f"{summary['recipe']}: {len(trials)} trials")
    axes.legend()
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
