"""Early-stopped teachers: the plan, and that the early teacher is the one that teaches."""

import json

import pytest
from kdx_eskd.assistant import EarlyStoppedTeacher

import kdx
from kdx import Ref
from kdx.testing import parametrize_checks


@parametrize_checks(EarlyStoppedTeacher(epochs=2))
def test_conformance(check) -> None:
    check()


def test_the_early_teacher_trains_as_the_teacher_does_for_fewer_epochs() -> None:
    early, last = EarlyStoppedTeacher(epochs=2).plan(Ref("convnet", width=8), Ref("mlp"))
    assert (early.role, early.model, dict(early.train), early.select) == (
        "teacher",
        Ref("convnet", width=8),
        {"epochs": 2},
        False,
    )
    assert (last.role, last.model, last.teachers) == ("distilled", Ref("mlp"), ("early-teacher",))


@pytest.mark.filterwarnings("ignore::kdx.assistants.gap.GapWarning")  # one epoch makes no student
def test_it_runs_in_a_recipe(tmp_path) -> None:
    recipe = tmp_path / "early.yaml"
    recipe.write_text(
        """
        data: {dataset: {name: digits}, validation: 100}
        teacher: {model: {name: mlp}, train: {epochs: 3}}
        student: {model: {name: mlp}}
        assistant: {name: early-stopped-teacher, epochs: 1}
        knowledge: {kd: {name: soft-targets, weight: 0.9}}
        train: {epochs: 1}
        controls: []
        """
    )
    kdx.run(recipe, folder=tmp_path / "run")
    steps = {
        name: json.loads((tmp_path / "run" / name / "result.json").read_text())["steps"]
        for name in ("teacher", "early-teacher")
    }
    assert steps["teacher"] == 3 * steps["early-teacher"]


def test_no_epochs_is_no_teacher() -> None:
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        EarlyStoppedTeacher(epochs=0)
