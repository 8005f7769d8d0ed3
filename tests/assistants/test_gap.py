"""The gap guard: what is said about a teacher and a student, and that it is said before the chain starts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kdx.assistants.gap import GapWarning, WeakTeacherWarning, gap_warnings
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


def test_it_is_said_before_the_chain_starts_and_stays_in_the_summary(tmp_path: Path) -> None:
    recipe = check_recipe(
        {
            "threads": 1,
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

    with pytest.warns(WeakTeacherWarning, match="is weaker than the student"):
        summary = Experiment(recipe, tmp_path / "run", [Watch()], notify=events.append).run()
    said = next(place for place, event in enumerate(events) if event.startswith("warning: "))
    assert events[:said] == ["teacher", "alone"]
    assert events[said + 1 :] == ["assistant-1", "distilled"]  # once
    assert events[said] == f"warning: {summary['warnings'][0]}"
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["warnings"] == summary["warnings"]
