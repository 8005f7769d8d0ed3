"""The report of a run, from a summary: rows, widths, the page."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from kdx.experiment.quality import Quality
from kdx.experiment.report import columns, draw_curves, seeds_table, stage_rows, stages_table, write_report
from kdx.files import write_json
from kdx.seal import seal_text
from kdx.tasks import Regression


def stage(**further: Any) -> dict[str, Any]:
    """What a stage adds to a summary."""
    result = {"parameters": 220_594, "bytes": 882_376, "latency_ms": 1.234, "latency_spread_ms": 0.246, "seconds": 3.0}
    return {"test": {"accuracy": 0.8125}, "validation": {"accuracy": 0.75}, **result, **further}


@pytest.fixture
def summary() -> dict[str, Any]:
    """A run of mutual learning on a stream, with controls."""
    peers = {name: {"accuracy": 0.5 + i / 10} for i, name in enumerate(("peer0", "peer1"))}
    return {
        "recipe": "made-up",
        "summary": "a run that never was",
        "seed": 0,
        "finished": "today",
        "warnings": [],
        "metric": "accuracy",
        "metric_label": "accuracy",
        "higher_is_better": True,
        "share": True,
        "test_rows": 2000,
        "gain": -12.5,
        "stages": {
            "alone": stage(prequential={"student": 0.5}),
            "label-smoothing": stage(),
            "distilled": stage(students=peers, prequential={"peer0": 0.5, "peer1": 0.5}),
        },
    }


@pytest.fixture
def folder(tmp_path: Path, summary: dict[str, Any]) -> Path:
    """The run's folder."""
    rows = [
        {"step": 5, "epoch": 1, "loss": 2.0, "eval/student/accuracy": 0.5, "prequential/student": 0.25},
        {"step": 10, "epoch": 2, "loss": 1.0, "eval/student/accuracy": 0.75, "prequential/student": 0.5},
    ]
    for name in summary["stages"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(seal_text("name: made-up\n"))
    write_json(tmp_path / "environment.json", {})
    return tmp_path


class Page(HTMLParser):
    """The first cells of the table's rows, the style and the picture's text of a report."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.style = self.alt = self._in = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        first = tag == "td" and self._in == "tr"
        self._in = "name" if first else tag
        self.alt = dict(attrs).get("alt") or self.alt
        if first:
            self.names.append("")

    def handle_data(self, data: str) -> None:
        if self._in == "name":
            self.names[-1] += data
        elif self._in == "style":
            self.style += data

    def handle_endtag(self, tag: str) -> None:
        self._in = ""


def test_the_page_keeps_the_indent_of_further_learners(folder: Path, summary: dict[str, Any]) -> None:
    page = Page(write_report(folder, summary).read_text())
    assert page.names == ["student alone", "student alone, smoothed labels", "distilled student, peer0", "  peer1"]
    rules = [rule.split("{")[1] for rule in page.style.split("}") if "td:first-child" in rule.split("{")[0]]
    assert any("white-space: pre" in rule for rule in rules)  # a browser would drop the two spaces


def test_the_text_for_the_picture_names_every_panel(folder: Path, summary: dict[str, Any]) -> None:
    panels = [axes.get_title() for axes in draw_curves(folder, summary).axes]
    assert panels[0] == "validation accuracy"
    assert panels[2] == "test, then train (prequential)"
    page = Page(write_report(folder, summary).read_text())
    assert all(panel in page.alt for panel in panels)


def printed(table: Table) -> str:
    """A table on a terminal of 80 columns."""
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


@pytest.mark.parametrize("latency", [0.41, 12.34, 345.6])
@pytest.mark.parametrize("chain", [False, True])
def test_on_a_terminal_of_80_columns_no_number_and_no_name_is_broken(
    summary: dict[str, Any], chain: bool, latency: float
) -> None:
    stages = summary["stages"]
    for each in stages.values():
        each |= {"latency_ms": latency, "latency_spread_ms": latency / 5, "parameters": 123_508_032}
    if chain:
        stages["distilled"] |= {"teachers": ["teacher", "assistant-1", "assistant-2"]}
    text = printed(stages_table(summary))
    for name in ("student alone", "student alone, smoothed labels", "distilled student, peer0"):
        (line,) = (line for line in text.splitlines() if f"{name} " in line)
        assert "123,508,032" in line
        assert "81.25" in line
        assert chain or re.search({0.41: r"0\.41 ± 0\.04", 12.34: r"12\.3 ± 1\.2", 345.6: "346 ± 35"}[latency], line)
    assert "-12.50" in text
    assert "peer1" in text


def test_what_stands_behind_the_latencys_plus_minus_is_said(folder: Path, summary: dict[str, Any]) -> None:
    meaning = "median ± half the distance between the 20th and the 80th percentile, one sample on one thread"
    assert meaning in " ".join(printed(stages_table(summary)).split())
    page = write_report(folder, summary).read_text()
    assert meaning in page
    assert "<td>1.23 ± 0.12</td>" in page


def test_one_seed_has_no_spread(summary: dict[str, Any]) -> None:
    one, two = seeds_table([summary]), seeds_table([summary, summary | {"seed": 1, "gain": -10.5}])
    assert one.columns[-1].header == "mean"
    assert list(one.columns[-1].cells) == ["81.25", "81.25", "81.25", "60.00", "-12.50"]
    assert two.columns[-1].header == "mean ± std"
    assert list(two.columns[-1].cells)[-1] == "-11.50 ± 1.41"


def test_an_error_is_no_percentage_and_a_gain_is_less_of_it(folder: Path, summary: dict[str, Any]) -> None:
    quality = Quality.of(Regression())
    summary |= {**quality.as_dict(), "gain": quality.gain(0.5, 0.75), "test_rows": 20}
    for result in summary["stages"].values():
        result |= {"test": {"rmse": 12.3456}, "validation": {"rmse": 10.5}}
    summary["stages"]["distilled"]["students"] = {"peer0": {"rmse": 12.3456}, "peer1": {"rmse": 0.5}}
    text = printed(stages_table(summary))
    assert "RMSE on 20 test rows" in text
    assert "12.35" in text
    assert "+0.25" in text
    assert "test, %" not in text
    assert "points" not in text
    over_seeds = seeds_table([summary, summary | {"gain": 0.5}])
    assert over_seeds.title == "RMSE on test"
    assert list(over_seeds.columns[-1].cells)[-1] == "0.375 ± 0.1768"
    (curve, *_) = draw_curves(folder, summary).axes
    assert curve.get_ylabel() == "RMSE on validation"
    assert "<th>gain</th>" in write_report(folder, summary).read_text()


def test_a_gain_is_above_0_where_the_student_is_better_whatever_the_direction() -> None:
    assert Quality("accuracy", "accuracy").gain(0.8, 0.75) == pytest.approx(5)
    assert Quality("error", "error", higher_is_better=False).gain(0.8, 0.75) == pytest.approx(-5)


HOSTILE = "<script>alert(1)</script>[bold red][/x]$\\foo$\x1b]0;title\x07\x1b[2J"


def test_a_hostile_text_is_shown_and_neither_run_nor_obeyed(folder: Path, summary: dict[str, Any]) -> None:
    for key in ("recipe", "summary", "finished", "metric_label"):
        summary[key] = HOSTILE if key != "metric_label" else HOSTILE.replace("$", "")
    summary["warnings"] = [HOSTILE]
    summary["stages"]["alone"] |= {
        "teachers": [HOSTILE],
        "students": {HOSTILE: {"accuracy": 0.5}, "b": {"accuracy": 1}},
    }
    (folder / "recipe.yaml").write_text(seal_text(f"{HOSTILE}\n"))
    write_json(folder / "environment.json", {HOSTILE: HOSTILE})
    row = {
        "step": 5,
        "epoch": 1,
        "loss": 2.0,
        f"eval/{HOSTILE.replace('/', '')}/accuracy": 0.5,
        "prequential/$\\foo$": 1,
    }
    (folder / "alone" / "metrics.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"eval/b/accuracy": 1}))
    page = write_report(folder, summary).read_text()
    assert "<script>alert(1)</script>" not in page
    assert page.count("&lt;script&gt;alert(1)") > 7
    for table in (stages_table(summary), seeds_table([summary])):
        console = Console(width=400, file=io.StringIO(), force_terminal=True, color_system=None)
        console.print(table)
        shown = console.file.getvalue()
        assert "\x1b]" not in shown
        assert "\x1b[2J" not in shown
        assert "[bold red][/x]" in shown


def test_costs_that_cannot_be_counted_are_said_to_be_so(summary: dict[str, Any]) -> None:
    summary["stages"]["alone"] |= {"parameters": None, "flops": None, "bytes": None}
    cells = stage_rows(summary)[0].cells
    assert cells.count("not counted") == 2


def artifact() -> dict[str, Any]:
    """What a stage's student was converted into."""
    return {
        "test": {"accuracy": 0.8},
        "validation": {"accuracy": 0.7},
        "bytes": 102_400,
        "bits": 8.5,
        "latency_ms": 0.5,
        "latency_spread_ms": 0.2,
    }


def test_what_a_student_was_converted_into_has_a_row_below_it(folder: Path, summary: dict[str, Any]) -> None:
    summary["stages"]["alone"] |= {"artifacts": {"onnx-int8": artifact()}, "bits": 32.0, "sparsity": 0.25}
    student, converted, *_ = stage_rows(summary)
    headers = columns(Quality.read(summary))[1:]
    assert dict(zip(headers, student.cells, strict=True))["bits"] == "32"
    assert dict(zip(headers, student.cells, strict=True))["zeros"] == "25.0%"
    cells = dict(zip(headers, converted.cells, strict=True))
    assert converted.name == "  as onnx-int8"
    assert [cells[name] for name in ("size, KiB", "bits", "zeros", "parameters")] == ["100", "8.5", "", ""]
    assert cells["test, %"] == "80.00"
    assert cells["latency, ms"] == "0.50 ± 0.10"
    shown = printed(stages_table(summary))
    assert re.search(r"as onnx-int8 .* 80\.00 .* 100 ", shown)
    assert "as onnx-int8" in write_report(folder, summary).read_text()


def test_what_students_were_converted_into_is_averaged_over_seeds(summary: dict[str, Any]) -> None:
    other = json.loads(json.dumps(summary)) | {"seed": 1}
    for each, accuracy in ((summary, 0.8), (other, 0.6)):
        converted = artifact() | {"test": {"accuracy": accuracy}}
        each["stages"]["alone"]["artifacts"] = {"onnx-int8": converted}
    summary["stages"]["distilled"]["artifacts"] = {"of-one-seed": artifact()}
    shown = printed(seeds_table([summary, other]))
    assert re.search(r"as onnx-int8 .*80\.00.*60\.00.*70\.00 ± 14\.14", shown)
    assert "of-one-seed" not in shown
