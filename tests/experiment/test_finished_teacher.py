"""Teachers that are trained already: weights of any form in a recipe, models that bring theirs, and what is refused."""

import json
import re

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import kdx
from kdx.cli.app import app
from kdx.errors import CheckpointError, RecipeError
from kdx.experiment.recipe_files import check_recipe, load_recipe
from tests.experiment.tiny import TINY, recipe, weights

SHAPE = {"num_classes": 10, "input_shape": (1, 8, 8)}
NET = {"name": "mlp", "hidden": [24, 16]}


@pytest.fixture
def trained():
    """A teacher for digits, drawn with another seed than that of any recipe."""
    torch.manual_seed(77)
    return kdx.make("model", kdx.Ref.of(NET), **SHAPE)


def teacher(**section):
    return recipe(teacher={"model": NET} | section)


def run(checked, folder):
    return kdx.run(checked, folder=folder, report=False)["stages"]


@pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning")
def test_weights_of_another_program_are_the_teachers(trained, tmp_path) -> None:
    path = tmp_path / "run.pth.tar"
    torch.save({"epoch": 9, "state_dict": {f"module.{k}": v for k, v in trained.state_dict().items()}}, path)
    with pytest.raises(CheckpointError, match=r"Write weights: \{file: .*, prefix: module\.\}"):
        run(teacher(weights=str(path)), tmp_path / "refused")
    assert not (tmp_path / "refused" / "recipe.yaml").exists()
    checked = teacher(weights={"file": str(path), "prefix": "module."}, train="none")
    stages = run(checked, tmp_path / "run")
    assert stages["teacher"]["loaded"] == str(path)
    assert "steps" not in stages["teacher"]
    assert "accuracy" in stages["teacher"]["test"]
    found = weights(tmp_path / "run", "teacher")
    assert all(found[name].equal(value) for name, value in trained.state_dict().items())
    again = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert again.dump() == checked.dump()
    assert again.dump()["teacher"]["weights"] == {"file": str(path), "prefix": "module."}
    assert again.dump()["teacher"]["train"] == "none"


OWN = """
import torch
from torch import nn

def pretrained(num_classes=10, input_shape=(1, 8, 8)):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
    net.load_state_dict(torch.load("own.pt"))
    return net

def half(num_classes=10, input_shape=(1, 8, 8)):
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    body.load_state_dict(torch.load("half.pt"))
    return nn.Sequential(body, nn.Linear(5, num_classes))
"""


@pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning")
def test_a_model_that_brings_its_weights_is_checked_and_never_trained(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    torch.save(net.state_dict(), "own.pt")
    (tmp_path / "nets.py").write_text(OWN)
    values = {**TINY, "teacher": {"model": "nets.py:pretrained", "train": "none"}}
    (tmp_path / "mine.yaml").write_text(json.dumps(values))
    stages = kdx.run("mine.yaml", folder="run", report=False)["stages"]
    assert stages["teacher"]["loaded"] == "with the model"
    found = weights(tmp_path / "run", "teacher")
    assert all(found[name].equal(value) for name, value in net.state_dict().items())
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).state_dict(), "half.pt")
    with pytest.raises(RecipeError, match=r"it is not trained, and of its weights 1\.weight, 1\.bias are drawn"):
        kdx.run("mine.yaml", folder="half", report=False, **{"teacher.model": "nets.py:half"})


def test_a_teacher_that_nobody_has_trained_is_refused(trained, tmp_path) -> None:
    with pytest.raises(RecipeError, match=r"it is not trained, and of its weights .* and \d more are drawn at random"):
        run(teacher(train="none"), tmp_path / "run")
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    last = [name for name, _ in trained.named_parameters()][-1].rpartition(".")[0]
    with pytest.raises(RecipeError, match=rf"of its weights {re.escape(last)}\.weight.*; remove skip from its weights"):
        run(teacher(weights={"file": str(tmp_path / "w.pt"), "skip": [last]}), tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_none_on_the_command_line_and_in_python_is_the_same(tmp_path) -> None:
    for given in (
        ["teacher.train=none"],
        ["teacher.train=null"],
        {"teacher.train": None},
        {"teacher": {"train": "none"}},
    ):
        assert load_recipe(TINY, given).teacher.train is None
    over = load_recipe(
        {**TINY, "teacher": {"model": NET, "weights": "a.pt"}}, ["teacher.weights={file: b.pt, skip: [fc]}"]
    )
    assert over.dump()["teacher"]["weights"] == {"file": "b.pt", "skip": ["fc"]}
    with pytest.raises(RecipeError, match=r"teacher\.weights\.prefx: unknown key; .*prefix"):
        check_recipe({**TINY, "teacher": {"model": NET, "weights": {"file": "b.pt", "prefx": "a."}}})
    with pytest.raises(RecipeError, match=r"teacher\.train: "):
        check_recipe({**TINY, "teacher": {"model": NET, "train": "never"}})


def test_a_scheme_that_trains_the_teacher_along_wants_no_finished_one(tmp_path) -> None:
    checked = recipe(teacher={"model": NET, "train": "none"}, scheme={"name": "online"})
    with pytest.raises(RecipeError, match=r"teacher\.train: none: scheme 'online' trains the teacher along"):
        run(checked, tmp_path / "run")


def test_a_loaded_teacher_needs_no_steps_beside_a_stream(trained, tmp_path) -> None:
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    data = {**TINY["data"], "stream": {}}
    checked = recipe(
        data=data, teacher={"model": NET, "weights": str(tmp_path / "w.pt")}, train={"steps": 4}, controls=[]
    )
    from kdx.experiment.plan import stages_of

    assert [stage.name for stage in stages_of(checked)] == ["teacher", "distilled"]


@pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning")
def test_a_student_starts_from_weights_with_another_classifier(tmp_path) -> None:
    torch.manual_seed(5)
    start = kdx.make("model", "mlp", hidden=(8, 8), num_classes=7, input_shape=(1, 8, 8))
    torch.save({"model": start.state_dict()}, tmp_path / "w.pt")
    last = list(start.state_dict())[-1].rpartition(".")[0]
    with pytest.raises(CheckpointError, match=rf"skip: \[{re.escape(last)}\]\}}, if {re.escape(last)} is to stay"):
        run(recipe(student={**TINY["student"], "weights": str(tmp_path / "w.pt")}), tmp_path / "run")
    section = {**TINY["student"], "weights": {"file": str(tmp_path / "w.pt"), "skip": [last]}}
    checked = recipe(student=section, controls=["untrained"])
    run(checked, tmp_path / "run")
    found = weights(tmp_path / "run", "untrained")
    assert all(found[name].equal(value) for name, value in start.state_dict().items() if not name.startswith(last))


def test_the_command_line_takes_a_file_of_any_form_and_a_map(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    net = kdx.make("model", "convnet", width=4, num_classes=10, input_shape=(1, 8, 8))
    torch.save({f"module.{name}": value for name, value in net.state_dict().items()}, "w.pt")
    make = ["student", "make", "convnet:width=4", "--data", "digits", "--params", "60%", "--force", "--weights"]
    refused = CliRunner().invoke(app, [*make, "w.pt"])
    assert refused.exit_code != 0
    result = CliRunner().invoke(app, [*make, "{file: w.pt, prefix: module.}"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "student.safetensors").exists()
