"""Self-distillation by recipe: the shipped recipes, and every other scheme in the place of BYOT."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

import kdx
from kdx.errors import Interrupted, RecipeError
from kdx.experiment.plan import stages_of
from kdx.experiment.recipe_files import check_recipe, load_recipe
from kdx.hookspecs import hookimpl
from kdx.models import ConvNet
from kdx.ref import Ref

SHORT = {"data.validation": 4744, "train.epochs": 2, "threads": 1}  # leaves 256 training images
TERMS = {
    "byot": {"task", "branch0/task", "branch0/kd", "branch0/feature", "branch1/task", "branch1/kd", "branch1/feature"},
    "sad": {"task", "sad"},
    "ps-kd": {"task", "kd"},
    "cs-kd": {"task", "kd"},
    "tf-kd": {"task", "virtual"},
    "snapshot-distillation": {"task", "kd"},
    "ema-teacher": {"task", "kd"},
}


class StopAt:
    def __init__(self, step: int, stage: str) -> None:
        self.step, self.stage = step, stage

    @hookimpl
    def kdx_step_end(self, run, step) -> None:
        if step == self.step and run.folder.name == self.stage:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("name", TERMS)
def test_a_recipe_names_the_scheme_alone_and_exports_the_plain_student(name: str, tmp_path: Path) -> None:
    options = {"cycle": 1} if name == "snapshot-distillation" else {}
    changes = {"scheme": {"name": name, **options}, "controls": [], "data.labelled": 120, "student.model.width": 2}
    shipped = load_recipe("fashion-byot", SHORT | {key: value for key, value in changes.items() if key != "scheme"})
    kdx.run(check_recipe(shipped.dump() | {"scheme": changes["scheme"]}), folder=tmp_path / "run", report=False)
    folder = tmp_path / "run" / "distilled"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = [{key.removeprefix("term/"): v for key, v in line.items() if key.startswith("term/")} for line in lines]
    logged = [terms for terms in logged if terms]
    assert {frozenset(terms) for terms in logged} == {frozenset(TERMS[name])}
    assert all(math.isfinite(value) for terms in logged for value in terms.values())
    assert load_file(folder / "student.safetensors").keys() == ConvNet(width=2, stages=4).state_dict().keys()


def test_knowledge_of_a_recipe_replaces_the_default(tmp_path: Path) -> None:
    knowledge = {"at": {"name": "attention-transfer", "student": "feature", "teacher": "feature", "weight": 10.0}}
    shipped = load_recipe("fashion-byot", SHORT | {"controls": [], "student.model.width": 2, "train.epochs": 1})
    kdx.run(check_recipe(shipped.dump() | {"knowledge": knowledge}), folder=tmp_path / "run", report=False)
    text = (tmp_path / "run" / "distilled" / "metrics.jsonl").read_text()
    assert "term/branch0/at" in text
    assert "term/branch0/kd" not in text


def test_generations_are_taught_by_the_one_before_and_resume_amid_one(tmp_path: Path) -> None:
    recipe = load_recipe(
        "fashion-born-again", SHORT | {"assistant.generations": 2, "data.labelled": 120, "student.model.width": 2}
    )
    stages = {stage.name: (stage.teachers, stage.seed) for stage in stages_of(recipe)}
    assert stages == {
        "alone": ((), 0),
        "generation1": (("alone",), 1),
        "distilled": (("generation1",), 2),
    }
    whole = kdx.run(recipe, folder=tmp_path / "whole", report=False)
    with pytest.raises(Interrupted):
        kdx.run(recipe, folder=tmp_path / "broken", report=False, observers=[StopAt(6, "generation1")])
    rest = kdx.run(recipe, folder=tmp_path / "broken", report=False, resume=True)
    weights = {}
    for stage in stages:
        unbroken, resumed = (load_file(tmp_path / run / stage / "student.safetensors") for run in ("whole", "broken"))
        assert unbroken.keys() == resumed.keys()
        assert all(value.equal(resumed[key]) for key, value in unbroken.items()), stage
        weights[stage] = unbroken["fc.weight"]
        assert whole["stages"][stage]["test"] == rest["stages"][stage]["test"]
    assert not any(weights["distilled"].equal(weights[stage]) for stage in stages if stage != "distilled")
    term = next(
        json.loads(line)["term/kd"]
        for line in (tmp_path / "whole/distilled/metrics.jsonl").read_text().splitlines()
        if "term/kd" in line
    )
    assert term > 0


def test_born_again_needs_no_teacher_and_says_what_does_not_fit() -> None:
    dump = load_recipe("fashion-born-again").dump()
    teacher = {"model": {"name": "convnet"}}
    for change, message in (
        ({"teacher": teacher}, "assistant 'born-again' begins with the student alone: remove the section teacher"),
        ({"controls": ["alone", "direct"]}, "controls: direct is the student of the teacher alone"),
        ({"assistant": None}, "scheme 'offline' needs a teacher"),
        ({"assistant": {"name": "hint-then-distil", "student_layer": "a", "teacher_layer": "b"}}, "needs a teacher"),
    ):
        with pytest.raises(RecipeError, match=message):
            check_recipe(dump | change)
    with pytest.raises(ValueError, match="generations must be >= 1, got 0"):
        kdx.make("assistant", "born-again", generations=0)
    one = kdx.make("assistant", "born-again", generations=1).plan(Ref("mlp"), Ref("mlp"))
    assert [(stage.name, stage.role, stage.teachers) for stage in one] == [("distilled", "distilled", ("alone",))]
