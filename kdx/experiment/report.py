"""The report of a run: a table for the terminal, curves as PNG, both as one HTML page."""

from __future__ import annotations

import base64
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment
from rich.console import JustifyMethod
from rich.markup import escape
from rich.table import Table

from kdx.experiment.description import Description
from kdx.experiment.quality import Quality
from kdx.experiment.run_files import PAGE, PICTURE, read_environment, read_recipe
from kdx.files import atomic_write
from kdx.observers.metrics_log import MetricsLog, read_metrics
from kdx.printable import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["columns", "draw_curves", "seeds_table", "stage_rows", "stages_table", "write_report"]

LATENCY = "latency: median ± half the distance between the 20th and the 80th percentile, one sample on one thread"
LABELS = {
    "teacher": "teacher",
    "alone": "student alone",
    "label-smoothing": "student alone, smoothed labels",
    "untrained": "student untrained",
    "direct": "student, no assistant",
    "distilled": "distilled student",
}


def columns(quality: Quality) -> tuple[str, ...]:
    """The columns of the table, the name of a row first."""
    tested = (f"test{quality.unit}", f"validation{quality.unit}")
    costs = ("parameters", "size, KiB", "bits", "zeros", "latency, ms")
    return ("", "taught by", *tested, *costs, "training", quality.gain_column)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table, as text."""

    name: str
    cells: tuple[str, ...]
    stage: str


def stage_rows(summary: Mapping[str, Any]) -> list[Row]:
    """The table of a summary: a row per learner of each stage, the columns of :func:`columns`.

    A stage of several learners (peers, a teacher beside its student) has a row for each; costs are those of the first.
    What its student was converted into, as ``kdx_finalise`` gave it, has rows below, with sizes of files.
    """
    rows = []
    quality, gain, stopped = Quality.read(summary), summary["gain"], summary.get("stopped")
    metric, text = quality.metric, quality.text
    for name, stage in summary["stages"].items():
        first, *others = _learners(name, stage)
        rows.append(
            Row(
                first,
                (
                    ", ".join(stage.get("teachers", ())),
                    text(stage["test"][metric]),
                    text(stage["validation"][metric]),
                    _counted(stage["parameters"]),
                    *_stored(stage),
                    _latency(stage["latency_ms"], stage["latency_spread_ms"] / 2),
                    _training(stage),
                    quality.gain_text(gain) if name == "distilled" and gain is not None else "",
                ),
                stage=name,
            )
        )
        blank = ("",) * (len(columns(quality)) - 3)
        rows += [Row(label, ("", text(_tested(stage, label)[metric]), *blank), stage=name) for label in others]
        for label, each in _artifacts(stage).items():
            latency = _latency(each["latency_ms"], each["latency_spread_ms"] / 2)
            judged = text(each["test"][metric]), text(each["validation"][metric])
            rows.append(Row(label, ("", *judged, "", *_stored(each), latency, "", ""), stage=name))
    if stopped:
        name = stopped["stage"]
        rows.append(Row(LABELS.get(name, name), ("", "stopped", *("",) * (len(columns(quality)) - 3)), stage=name))
    return rows


def stages_table(summary: Mapping[str, Any]) -> Table:
    """The table for the terminal: what fits into 80 columns beside the longest name; the page has the rest."""
    title = (
        f"{summary['recipe']}, seed {summary['seed']}: {summary['metric_label']} on {summary['test_rows']:,} test rows"
    )
    stages = summary["stages"]
    chain = any(len(stage.get("teachers", ())) > 1 or stage.get("role") == "assistant" for stage in stages.values())
    quality = Quality.read(summary)
    finished = any(_artifacts(stage) for stage in stages.values())
    left_out = {f"validation{quality.unit}", "bits", "zeros", "training", "latency, ms" if chain else "taught by"}
    left_out.add("parameters" if finished else "size, KiB")
    headers = columns(quality)
    narrow = [i for i, column in enumerate(headers) if column not in left_out]
    table = Table(title=_shown(title), caption=None if chain else LATENCY)
    for i in narrow:
        justify: JustifyMethod = "right" if i else "left"
        header = headers[i].replace(", ", ",\n")  # the unit below its quantity
        table.add_column(_shown(header), justify=justify, no_wrap=headers[i] != "taught by", overflow="fold")
    for row in stage_rows(summary):
        if stages.get(row.stage, {}).get("role") == "probe":
            continue  # short runs that only size the assistants; the page has them
        cells = (row.name, *row.cells)
        table.add_row(*(_shown(cells[i]) for i in narrow))
    return table


def seeds_table(summaries: Sequence[Mapping[str, Any]]) -> Table:
    """Mean and standard deviation over seeds, and the paired gains; one seed has no deviation."""
    quality = Quality.read(summaries[0])
    table = Table(
        "",
        *(_shown(f"seed {item['seed']}") for item in summaries),
        "mean ± std" if len(summaries) > 1 else "mean",
        title=_shown(f"{quality.metric_label} on test{quality.unit}"),
    )
    table.columns[0].no_wrap = True
    for name, stage in summaries[0]["stages"].items():
        for label in _learners(name, stage):
            values = [_tested(item["stages"][name], label)[quality.metric] for item in summaries]
            table.add_row(_shown(label), *(quality.text(value) for value in values), _spread(values, quality))
        for label in _artifacts(stage):
            found = [_artifacts(item["stages"][name]).get(label, {}) for item in summaries]
            if all(found):
                values = [each["test"][quality.metric] for each in found]
                table.add_row(_shown(label), *(quality.text(value) for value in values), _spread(values, quality))
    gains = [item["gain"] for item in summaries if item["gain"] is not None]
    if len(gains) == len(summaries):
        unscaled = [value / quality.scaled(1) for value in gains]
        table.add_row(_shown(quality.gain_column), *(map(quality.gain_text, gains)), _spread(unscaled, quality))
    return table


def draw_curves(folder: Path, summary: Mapping[str, Any]) -> Figure:
    """Validation metric and training loss of every stage against epochs."""
    from matplotlib.figure import Figure  # a third of what it costs to start a run

    stream = any("prequential" in stage for stage in summary["stages"].values())
    figure = Figure(figsize=(15 if stream else 10, 4), layout="constrained")
    quality, loss, *further = figure.subplots(1, 3 if stream else 2)
    judged = Quality.read(summary)
    metric, label_of_metric = f"/{judged.metric}", printable(judged.metric_label)
    stopped = summary.get("stopped")
    for name in [*summary["stages"], *([stopped["stage"]] if stopped else [])]:
        rows = read_metrics(folder / name / MetricsLog.name)
        label = LABELS.get(name, name)
        learners = {key for row in rows for key in row if key.startswith("eval/") and key.endswith(metric)}
        for learner in sorted(learners):
            points = [(row["epoch"], judged.scaled(row[learner])) for row in rows if learner in row]
            of = "" if len(learners) == 1 else f": {printable(learner.split('/')[1])}"
            quality.plot(*zip(*points, strict=True), marker=".", label=label + of)
        if logged := [(row["step"], row["loss"]) for row in rows if "loss" in row]:
            loss.plot(*zip(*logged, strict=True), marker=".", label=label)
        for axes in further:
            _draw_prequential(axes, rows, label)
    quality.set(
        xlabel="epoch", ylabel=f"{label_of_metric} on validation{judged.unit}", title=f"validation {label_of_metric}"
    )
    loss.set(xlabel="optimizer step", ylabel="training loss", title="training loss (each stage's own)")
    if all(value > 0 for line in loss.lines for value in line.get_ydata()):  # a likelihood may be below 0
        loss.set_yscale("log")
    for axes in (quality, loss, *further):
        axes.grid(alpha=0.3)
        if axes.lines:
            for text in axes.legend().get_texts():
                text.set_parse_math(False)  # a dollar in a name is no formula
    return figure


def _draw_prequential(axes: Any, rows: Sequence[Mapping[str, Any]], label: str) -> None:
    """Accuracy of every student of a stage on each stretch of the stream, before it was trained on."""
    names = {key.split("/")[1]: None for row in rows for key in row if key.startswith("prequential/")}
    for name in names:
        points = [(row["step"], 100 * row[key]) for row in rows if (key := f"prequential/{name}") in row]
        axes.plot(*zip(*points, strict=True), marker=".", label=label if len(names) == 1 else f"{label}: {name}")
    axes.set(xlabel="optimizer step", ylabel="accuracy on the next batches, %", title="test, then train (prequential)")


def write_report(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Writes ``report.png`` and a self-contained ``report.html`` into a run's folder."""
    picture = folder / PICTURE
    figure = draw_curves(folder, summary)
    atomic_write(picture, lambda path: figure.savefig(path, format="png", dpi=120))
    weights = summary["stages"].get("distilled", {}).get("weights")
    described = Description.read(folder / weights) if weights else None
    template = (resources.files("kdx") / "templates" / "report.html.j2").read_text()
    page = (
        Environment(autoescape=True)
        .from_string(template)
        .render(
            summary=summary,
            columns=columns(Quality.read(summary)),
            latency=LATENCY,
            rows=stage_rows(summary),
            written=_written(summary),
            recipe=read_recipe(folder),
            environment=json.dumps(read_environment(folder), indent=2),
            panels="; ".join(axes.get_title() for axes in figure.axes),
            folder=str(folder),
            student=described,
            picture=base64.b64encode(picture.read_bytes()).decode(),
        )
    )
    path = folder / PAGE
    atomic_write(path, lambda temporary: temporary.write_text(page))
    return path


def _written(summary: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Prompt -> the stages and what their models wrote behind it, of language models."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, stage in summary["stages"].items():
        for each in stage.get("continuations", ()):
            found.setdefault(each["prompt"], []).append((LABELS.get(name, name), each["text"]))
    return found


def _shown(text: str) -> str:
    """A text of a summary for the terminal, which neither rich nor the terminal takes for an instruction."""
    return escape(printable(text))


def _learners(name: str, stage: Mapping[str, Any]) -> list[str]:
    """The names of a stage's rows: the stage first, with the learner's name if it has several."""
    label = LABELS.get(name, name)
    first, *others = stage.get("students", {"": None})
    return [f"{label}, {first}" if others and first != "student" else label, *(f"  {other}" for other in others)]


def _artifacts(stage: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The artifacts of a stage's student, by the names of their rows."""
    return {f"  as {name}": each for name, each in stage.get("artifacts", {}).items()}


def _stored(stage: Mapping[str, Any]) -> tuple[str, str, str]:
    """The size in KiB, the bits of a weight and the share of zeros, of a student or of what it was converted into."""
    bits, zeros = stage.get("bits"), stage.get("sparsity")
    return (
        _counted(None if stage["bytes"] is None else stage["bytes"] / 1024),
        "" if bits is None else f"{bits:.3g}",
        "" if zeros is None else f"{zeros:.1%}",
    )


def _tested(stage: Mapping[str, Any], label: str) -> Mapping[str, float]:
    """The test metrics of the learner in a row of :func:`_learners`."""
    found: Mapping[str, float] = stage.get("students", {}).get(label.strip(), stage["test"])
    return found


def _counted(number: float | None) -> str:
    return "not counted" if number is None else f"{number:,.0f}"


def _latency(median: float, spread: float) -> str:
    """In milliseconds, to the digits that a timing has and 11 columns hold."""
    digits = 2 if median < 10 else 1 if median < 100 else 0
    return f"{median:.{digits}f} ± {spread:.{digits}f}"


def _training(stage: Mapping[str, Any]) -> str:
    if "seconds" in stage:
        return f"{stage['seconds']:.0f} s"
    return next((how for how in ("loaded", "reused") if how in stage), "none")


def _spread(values: Sequence[float], quality: Quality) -> str:
    spread = f" ± {quality.text(statistics.stdev(values))}" if len(values) > 1 else ""
    return f"{quality.text(statistics.mean(values))}{spread}"
