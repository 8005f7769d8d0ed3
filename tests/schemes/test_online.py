"""Online distillation and several teachers: who learns from whom, and what a recipe builds."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

import kdx
from kdx.experiment.recipe_files import check_recipe, load_recipe
from kdx.experiment.report import seeds_table, stages_table
from kdx.schemes.multi_teacher import MultiTeacher
from kdx.schemes.online import Online
from kdx.teachers import Frozen

SHORT = {"data.validation": 4744, "train.epochs": 1, "threads": 1, "controls": [], "student.model.width": 2}


def test_teacher_and_student_learn_at_once_and_gradients_go_one_way(net, batch) -> None:
    knowledge = {"kd": (0.5, kdx.SoftTargets(2.0)), "hint": kdx.Hint(student="conv", teacher="conv")}
    scheme = Online(net(3), net(6), task=(0.5, F.cross_entropy), knowledge=knowledge, teacher_task=2.0)
    scheme.setup(batch)
    scheme.train()
    terms = scheme(batch).terms
    assert list(terms) == ["task", "kd", "hint", "teacher/task"]
    teacher = list(scheme.teacher.model.parameters())
    for name, term in terms.items():
        found = torch.autograd.grad(term, teacher, retain_graph=True, allow_unused=True)
        assert any(gradient is not None for gradient in found) is (name == "teacher/task")
    found = torch.autograd.grad(terms["teacher/task"], list(scheme.student.parameters()), allow_unused=True)
    assert all(gradient is None for gradient in found)
    scheme.eval()
    expected = 2 * F.cross_entropy(scheme.teacher.model(batch.inputs), batch.targets)
    torch.testing.assert_close(scheme(batch).terms["teacher/task"], expected)
    assert any(name.startswith("teacher.model") for name in scheme.state_dict())


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda net: Online(m := net(), m), ValueError, "one module; pass two"),
        (lambda net: Online(net(), net(), task=None), ValueError, "the teacher learns from its task"),
        (lambda net: Online(net(), net(), teacher_task=0), ValueError, "teacher_task must be > 0 and finite, got 0"),
        (lambda net: Online(net(), Frozen(net())), TypeError, "a model or a Live teacher"),
        (lambda net: MultiTeacher(m := net(), {"a": m, "b": net()}), ValueError, "the student is one of the teachers"),
        (
            lambda net: MultiTeacher(net(), {"a": net(), "b": net()}, weights="validation"),
            ValueError,
            "needs qualities",
        ),
    ],
)
def test_bad_arguments_say_what_was_expected(net, build, error, message) -> None:
    with pytest.raises(error, match=message):
        build(net)


def test_teachers_weigh_by_their_quality_on_held_out_rows(net, batch) -> None:
    teachers = {"good": net(4), "poor": net(4)}
    qualities = {"good": 0.9, "poor": 0.3}
    scheme = MultiTeacher(
        net(), teachers, weights="validation", qualities=qualities, task=None, knowledge={"kd": kdx.SoftTargets()}
    )
    with torch.no_grad():
        expected = 0.75 * teachers["good"](batch.inputs) + 0.25 * teachers["poor"](batch.inputs)
    torch.testing.assert_close(scheme.teacher(batch).logits, expected)


@pytest.mark.parametrize(
    ("name", "learners", "changes"),
    [
        ("fashion-online", ["student", "teacher"], {"teacher.model.width": 4}),
        ("fashion-mutual", ["peer0", "peer1", "peer2"], {"peers": 3}),
        ("fashion-mutual", ["peer0", "peer1"], {"scheme": {"name": "kdcl", "ensemble": "linear"}}),
        ("fashion-mutual", ["peer0", "peer1"], {"scheme": {"name": "mutual", "updates": "alternating"}}),
        ("fashion-byot", ["student"], {"scheme": {"name": "one", "split": "stage3"}}),
    ],
)
def test_recipes_train_evaluate_and_export_every_learner(name, learners, changes, tmp_path: Path) -> None:
    scheme = changes.pop("scheme", None)
    recipe = load_recipe(name, SHORT | changes)
    summary = kdx.run(
        check_recipe(recipe.dump() | ({"scheme": scheme} if scheme else {})), folder=tmp_path / "run", report=False
    )
    folder = tmp_path / "run" / "distilled"
    assert sorted(path.stem for path in folder.glob("*.safetensors")) == learners
    result = json.loads((folder / "result.json").read_text())
    assert list(result.get("students", {"student": 0})) == learners
    assert not (tmp_path / "run" / "teacher").exists()  # no stage trains a teacher first
    first = "distilled student" + (f", {learners[0]}" if learners[1:] and learners[0] != "student" else "")
    rows = [first, *(f"  {learner}" for learner in learners[1:])]
    found = [result["test"], *(result["students"][learner] for learner in learners[1:])]
    tested = [f"{100 * values['accuracy']:.2f}" for values in found]
    shown = stages_table(summary)
    assert list(shown.columns[0].cells) == rows
    assert list(shown.columns[1].cells) == tested
    over_seeds = seeds_table([summary, summary])
    assert list(over_seeds.columns[0].cells) == rows
    assert list(over_seeds.columns[2].cells) == tested


def test_names_of_stages_stay_whole_on_a_terminal_of_80_columns(tmp_path: Path) -> None:
    quick = SHORT | {"controls": ["alone", "label-smoothing"], "data.labelled": 60}
    summary = kdx.run(check_recipe(load_recipe("fashion-mutual", quick).dump()), folder=tmp_path / "run", report=False)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(stages_table(summary))
    lines = console.export_text().splitlines()
    for name in ("student alone", "student alone, smoothed labels", "distilled student, peer0", "  peer1"):
        assert any(name in line for line in lines), lines


@pytest.mark.filterwarnings("ignore::kdx.experiment.experiment.WeakTeacherWarning")
def test_a_recipe_has_several_teachers_each_with_its_knowledge(tmp_path: Path) -> None:
    shipped = load_recipe(
        "fashion-offline", SHORT | {"data.labelled": 120, "teacher.model.width": 2, "teacher.train.epochs": 1}
    ).dump()
    teacher = shipped["teacher"]
    second = teacher | {"model": teacher["model"] | {"width": 3}, "dtype": "bf16"}
    changes = {
        "teachers": {"wide": second},
        "scheme": {"name": "multi-teacher", "weights": "validation"},
        "knowledge": {
            "kd": {"name": "soft-targets", "temperature": 4.0},
            "rkd": {"name": "rkd", "student": "avgpool", "teacher": "wide/avgpool"},
        },
    }
    kdx.run(check_recipe(shipped | changes), folder=tmp_path / "run", report=False)
    text = (tmp_path / "run" / "distilled" / "metrics.jsonl").read_text()
    assert "term/kd" in text
    assert "term/rkd" in text
