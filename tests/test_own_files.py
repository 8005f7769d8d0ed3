"""Components in a user's own files: found, trusted, kept with the run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import kdx
from kdx.cli.app import main
from kdx.errors import PluginError, RecipeError, RunExistsError, TrustError, UnknownNameError
from kdx.experiment.recipe_files import load_recipe
from kdx.own_files import OwnFiles, is_own
from tests.experiment.tiny import TINY

NETS = """
from blocks import WIDTH
from torch import nn
import kdx

class Net(nn.Sequential):
    def __init__(self, num_classes, input_shape, width=WIDTH):
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, num_classes))

class Squares(kdx.knowledge.SoftTargets):
    def term(self, student, teacher):
        return ((student - teacher) ** 2).mean(1)

def Rows(split="train", *, rows=300):
    from kdx.datasets import Digits, View
    digits = Digits(split)
    digits.images, digits.targets = digits.images[:rows], digits.targets[:rows]
    return digits

COUNT = 3
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A recipe whose student and data are in a file beside it, which imports another one."""
    (tmp_path / "my_nets.py").write_text(NETS)
    (tmp_path / "blocks.py").write_text("WIDTH = 8\n")
    recipe = {**TINY, "student": {"model": {"name": "my_nets.py:Net"}}}
    recipe["data"] = {"dataset": {"name": "my_nets.py:Rows", "rows": 400}, "validation": 50}
    recipe["teacher"] = {
        **TINY["teacher"],
        "train": {"epochs": 20, "batch_size": 32, "optimizer": {"name": "AdamW", "lr": 0.01}},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def test_names_in_files_are_told_from_others() -> None:
    assert is_own("a/b.py:Net")
    assert is_own("../b.py:Net.Inner")
    assert not any(map(is_own, ("convnet", "b.py", "b.py:", "b.py:1", "kdx.models.mlp:MLP")))


def test_a_recipe_runs_the_files_beside_it_and_keeps_copies(place, monkeypatch) -> None:
    monkeypatch.chdir(place.parent)  # names are relative to the recipe, wherever it is run
    summary = kdx.run(place / "mine.yaml", folder=place / "run", report=False)
    assert summary["stages"]["distilled"]["model"] == "my_nets.py:Net"
    code = json.loads((place / "run/environment.json").read_text())["code"]
    assert {name: kept["copy"] for name, kept in code.items()} == {
        "my_nets.py": "code/my_nets.py",
        "blocks.py": "code/blocks.py",
    }
    for name, kept in code.items():
        assert (place / "run" / kept["copy"]).read_bytes() == (place / name).read_bytes()
    assert kdx.run(place / "mine.yaml", folder=place / "run", resume=True)["gain"] == summary["gain"]
    assert "blocks" not in sys.modules
    assert str(place) not in sys.path


def test_the_command_says_which_files_it_runs(place, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["kdx", "run", str(place / "mine.yaml"), "--folder", str(place / "run")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    said = capsys.readouterr().out
    assert f"runs {place / 'my_nets.py'} (sha256 " in said
    assert f"runs {place / 'blocks.py'} (sha256 " in said


def test_a_file_that_changed_is_not_resumed(place) -> None:
    from tests.stopping import Stop

    def run(**options):
        return kdx.run(place / "mine.yaml", folder=place / "run", report=False, **options)

    with pytest.raises(kdx.errors.Interrupted):
        run(observers=[Stop(1)])
    for name in ("blocks.py", "my_nets.py"):
        kept = (place / name).read_text()
        (place / name).write_text(kept + "\n# another line\n")
        with pytest.raises(RecipeError, match=rf"'{name}' is not what the run in .* code/{name} there is a copy"):
            run(resume=True)
        (place / name).write_text(kept)
    assert run(resume=True)["stages"]


def test_a_file_elsewhere_needs_trust_and_the_refusal_shows_path_and_hash(place, tmp_path_factory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "net.py"
    marker = elsewhere.with_name("ran")
    elsewhere.write_text(NETS.replace("from blocks import WIDTH", f"WIDTH = 4; open({str(marker)!r}, 'w').close()"))
    (place / "link.py").symlink_to(elsewhere)
    for name in (str(elsewhere), "link.py", f"../{elsewhere.parent.name}/net.py"):
        with pytest.raises(
            (TrustError, RecipeError), match=r"net\.py .*sha256 [0-9a-f]{16}.*--trust|there is no file"
        ) as caught:
            load_recipe(place / "mine.yaml", [f"student.model={{name: {name}:Net}}"])
        assert not marker.exists()
        if "there is no file" not in str(caught.value):
            assert isinstance(caught.value, TrustError)
    for trust in (str(elsewhere), True):
        load_recipe(place / "mine.yaml", [f"student.model={{name: {elsewhere}:Net}}"], trust=trust)
    assert marker.exists()


def test_text_alone_names_no_file_outside_a_recipe(place) -> None:
    with pytest.raises(UnknownNameError, match=r"which only a recipe can name; in Python import the file"):
        kdx.make("model", "my_nets.py:Net")
    (place / "student.yaml").write_text(yaml.safe_dump({"base": {"name": "my_nets.py:Net"}, "edits": []}))
    with pytest.raises(UnknownNameError, match=r"model 'my_nets\.py:Net' is in a file, which only a recipe can name"):
        kdx.run(place / "mine.yaml", **{"student.model": {"name": "derived", "config": str(place / "student.yaml")}})


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "my_net.py:Net",
            RecipeError,
            r"student\.model\.name: there is no file .*my_net\.py.* did you mean 'my_nets\.py'",
        ),
        ("my_nets.py:Nets", RecipeError, r"my_nets\.py has no 'Nets'; did you mean 'Net'"),
        ("my_nets.py:COUNT", PluginError, r"model 'my_nets\.py:COUNT' is 3, not a class or function$"),
        ("broken.py:Net", PluginError, r"broken\.py does not import: SyntaxError"),
        ("lacks.py:Net", PluginError, r"lacks\.py does not import: ModuleNotFoundError: No module named 'nothing_of"),
    ],
)
def test_files_that_do_not_do_are_named(place, name, error, message) -> None:
    (place / "broken.py").write_text("class Net(:\n")
    (place / "lacks.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(error, match=message):
        load_recipe(place / "mine.yaml", [f"student.model={{name: {name}}}"])


def test_knowledge_in_a_file_must_be_knowledge(place) -> None:
    assert load_recipe(place / "mine.yaml", ["knowledge.kd={name: my_nets.py:Squares}"]).knowledge["kd"].options == {}
    with pytest.raises(PluginError, match=r"not a subclass of kdx\.Knowledge"):
        load_recipe(place / "mine.yaml", ["knowledge.kd={name: my_nets.py:Net}"])


def test_files_of_one_name_in_two_folders_stay_apart(tmp_path) -> None:
    found = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "nets.py").write_text("from parts import N\nclass Net:\n    n = N\n")
        (folder / "parts.py").write_text(f"N = {number}\n")
        files = OwnFiles(folder)
        found.append(files.load("nets.py:Net"))
        assert files.load("nets.py:Net") is found[-1]
        assert files.loaded == {"nets.py": folder / "nets.py", "parts.py": folder / "parts.py"}
    assert [net.n for net in found] == [1, 2]


def test_a_recipe_may_be_plain_values_and_files_are_then_those_of_the_working_directory(place, monkeypatch) -> None:
    monkeypatch.chdir(place)
    values = yaml.safe_load((place / "mine.yaml").read_text())
    summary = kdx.run(values, folder=place / "run", report=False, **{"train.epochs": 1})
    assert summary["recipe"] == "recipe"
    with pytest.raises(RunExistsError):
        kdx.run(values, folder=place / "run")
    with pytest.raises(RecipeError, match=r"^recipe: knowlege: unknown key"):
        kdx.run({**values, "knowlege": {}})


def test_a_model_in_a_file_distils_as_any_other(place) -> None:
    net = OwnFiles(place).load("my_nets.py:Net")
    student = net(10, (1, 8, 8))
    assert isinstance(student, nn.Module)
    assert student(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
