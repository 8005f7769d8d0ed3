"""The recipes that kdx has: every one resolves and plans; those of other tasks than images run, made short."""

from __future__ import annotations

from pathlib import Path

import pytest

import kdx
from kdx.experiment.plan import stages_of
from kdx.experiment.recipe_files import load_recipe, recipe_names
from kdx.registry import default_plugins

pytestmark = pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning")


@pytest.mark.parametrize("name", sorted(recipe_names()))
def test_every_recipe_has_a_plan_that_ends_in_the_distilled_student(name: str) -> None:
    stages = stages_of(load_recipe(name), default_plugins())
    assert stages[-1].role == "distilled"


SHORT = {
    "scenes-segmentation": {
        "data.dataset.scenes": 40,
        "data.validation": 8,
        "data.labelled": 8,
        "teacher.model.width": 4,
    },
    "stress-tokens": {"data.validation": 15000, "teacher.model.dim": 16},
    "words-multi-label": {"train.batch_size": 512, "teacher.train.batch_size": 512, "teacher.model.width": 24},
    "ecg-forecast": {"data.dataset.step": 16, "data.labelled": 100, "teacher.model.width": 4},
}
"""Of each recipe beyond the classes of images what makes it short: fewer rows, smaller teachers."""


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SHORT))
def test_a_recipe_beyond_the_classes_of_images_runs(name: str, tmp_path: Path) -> None:
    two = {"teacher.train.epochs": 2, "train.epochs": 2, "threads": 1}
    recipe = load_recipe(name, {**SHORT[name], **two})
    summary = kdx.run(recipe, folder=tmp_path / "run")
    assert list(summary["stages"]) == ["teacher", *recipe.controls, "distilled"]
    made = kdx.make("task", recipe.task.ref)
    assert summary["metric"] == made.metric
    for stage in summary["stages"].values():
        assert made.metric in stage["test"]
        assert stage["parameters"] > 0
        assert stage["flops"] > 0
    terms = {f"term/{term}" for term in ("task", *recipe.knowledge)}
    rows = kdx.observers.read_metrics(tmp_path / "run" / "distilled" / "metrics.jsonl")
    assert terms <= {key for row in rows for key, value in row.items() if value != 0}
    assert (tmp_path / "run" / "report.html").exists()
