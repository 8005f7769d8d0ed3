"""The gap guard: what is said about a teacher and a student, and that it is said before the chain starts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kdx.assistants.gap import GapWarning, NoGainWarning, WeakTeacherWarning, gap_warnings, no_gain_warning
from kdx.experiment.experiment import Experiment
from kdx.experiment.recipe_files import check_recipe
from kdx.hookspecs import hookimpl


@pytest.mark.parametrize(
    ("teacher", "student", "links", "category", "message"),
    [
        (90.0, 80.0, 2, None, ""),
        (79.0, 80.0, 2, WeakTeacherWarning, r"79\.0 % on validation\) is weaker than the student \(80\.0 %\)"),
        (90.0, 88.5, 2, GapWarning, r"by no more than the noise of 500 rows \(2\.0 points\)"),
        (90.0, 40.0, 2, GapWarning, r"50\.0 points apart, 25\.0 for each of 2 links"),
        (90.0, 40.0, 4, None, ""),
        (100.0, 100.0, 2, GapWarning, "nothing to bridge"),
    ],
)
def test_what_is_said(teacher: float, student: float, links: int, category, message: str) -> None:
    found = gap_warnings("teacher", teacher, student, links=links, rows=500)
    assert [kind for kind, _ in found] == ([category] if category else [])
    if category:
        assert re.search(message, found[0][1])


def test_without_a_chain_only_a_weak_teacher_is_worth_a_word() -> None:
    assert gap_warnings("teacher", 90.0, 89.9, rows=500, chain=False) == []
    assert gap_warnings("teacher", 99.0, 10.0, rows=500, chain=False) == []
    assert gap_warnings("teacher", 50.0, 60.0, rows=500, chain=False)[0][0] is WeakTeacherWarning


def test_of_an_error_the_larger_one_is_the_weaker() -> None:
    error = {"rows": 500, "share": False, "higher_is_better": False}
    assert gap_warnings("teacher", 0.31, 1.7, links=2, **error) == []
    ((kind, message),) = gap_warnings("teacher", 1.7, 0.31, links=2, **error)
    assert kind is WeakTeacherWarning
    assert "teacher (1.7 on validation) is weaker than the student (0.31)" in message


@pytest.mark.parametrize(
    ("distilled", "alone", "options", "words"),
    [
        (80.0, 80.0, {}, None),
        (80.1, 80.0, {}, None),
        (float("nan"), 80.0, {}, None),
        (79.9, 80.0, {}, r"alone \(80\.00 %\): a gain of -0\.10 points; that is within the noise of 500 rows \(2\.53"),
        (
            70.0,
            80.0,
            {},
            r"accuracy 70\.00 % on test\) ends below .* -10\.00 points; take another temperature or weight",
        ),
        (0.3, 0.4, {"share": False, "higher_is_better": False}, None),
        (0.41, 0.4, {"share": False, "higher_is_better": False}, r"\(accuracy 0\.41 on test\).*a gain of -0\.01; take"),
        (0.3, 0.4, {"share": False}, r"student alone \(0\.4\): a gain of -0\.1;"),
    ],
)
def test_a_distilled_student_below_the_student_alone_is_said(distilled, alone, options, words) -> None:
    message = no_gain_warning(distilled, alone, rows=500, metric="accuracy", **options)
    assert message is None if words is None else re.search(words, message)


def test_it_is_said_before_the_chain_starts_and_stays_in_the_summary(tmp_path: Path) -> None:
    recipe = check_recipe(
        {
            "threads": 1,
            "task": {"name": "classification", "weight": 0.0},  # nothing is learned but from the poor teacher
            "data": {"dataset": {"name": "digits"}, "validation": 1000},
            "teacher": {
                "model": {"name": "mlp", "hidden": [8]},
                "train": {"epochs": 1, "optimizer": {"name": "SGD", "lr": 1e-9}},
            },
            "student": {"model": {"name": "mlp", "hidden": [32]}},
            "assistant": {"name": "takd", "models": [{"name": "mlp", "hidden": [16]}]},
            "knowledge": {"kd": {"name": "soft-targets"}},
            "train": {"epochs": 1, "batch_size": 64, "optimizer": {"name": "AdamW", "lr": 0.01}},
            "controls": [],
        }
    )
    events: list[str] = []

    class Watch:
        @hookimpl
        def kdx_configure(self, run):
            events.append(run.folder.name)

    with (
        pytest.warns(WeakTeacherWarning, match="is weaker than the student"),
        pytest.warns(NoGainWarning, match="ends below the student alone"),
    ):
        summary = Experiment(recipe, tmp_path / "run", [Watch()], notify=events.append).run()
    said = next(place for place, event in enumerate(events) if event.startswith("warning: "))
    assert events[:said] == ["teacher", "alone"]
    assert events[said + 1 : -1] == ["assistant-1", "distilled"]  # once
    assert events[-1] == f"warning: {summary['warnings'][1]}"
    assert f"a gain of {summary['gain']:+.2f} points" in summary["warnings"][1]
    assert summary["warnings"][1] in (tmp_path / "run" / "report.html").read_text()
    assert events[said] == f"warning: {summary['warnings'][0]}"
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["warnings"] == summary["warnings"]
