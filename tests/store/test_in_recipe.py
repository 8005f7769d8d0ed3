"""Stores in recipes and on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import kdx
from kdx.cli.app import app
from kdx.errors import RecipeError, StoreError
from kdx.experiment.experiment import Experiment
from kdx.experiment.recipe_files import load_recipe
from kdx.models import ConvNet
from kdx.store import Store
from kdx.store.source import Source

SHORT = {
    "data.validation": 4744,  # leaves 256 training images
    "data.labelled": 120,
    "teacher.model.width": 4,
    "student.model.width": 2,
    "teacher.store.views": 2,
    "controls": [],
    "train.epochs": 3,
    "threads": 1,
}

pytestmark = pytest.mark.filterwarnings("ignore::kdx.experiment.experiment.WeakTeacherWarning")


@pytest.fixture
def short(tmp_path: Path) -> dict[str, object]:
    """The shipped recipe, shortened, with the weights of an untrained teacher."""
    torch.manual_seed(1)
    save_file(ConvNet(width=4).state_dict(), tmp_path / "teacher.safetensors")
    return SHORT | {"teacher.weights": str(tmp_path / "teacher.safetensors")}


def test_the_recipe_writes_its_store_once_and_trains_from_it(tmp_path, short, monkeypatch) -> None:
    calls = []
    encode = Source.encode
    monkeypatch.setattr(
        Source, "encode", lambda self, view, at: calls.append((view, len(at))) or encode(self, view, at)
    )
    told: list[str] = []
    recipe = load_recipe("fashion-cached", short)
    Experiment(recipe, tmp_path / "run", notify=told.append, report=False).run()
    tried = [(0, 2), (0, 2)]  # whether it can be stored at all: two samples, forgotten
    assert calls == [*tried, (0, 256), (0, 256), (1, 256)]  # a look at one batch, then two views
    store = Store(tmp_path / "run" / "teacher" / "store")
    assert store.views == 2
    assert store.manifest.data["transform"] == "ShiftFlip(shift=1, flip=0.5, fill=None, seed=0)"
    assert any("teacher: stored logits of 256 samples in 2 views" in line for line in told)
    rows = [json.loads(line) for line in (tmp_path / "run" / "distilled" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["epoch"] == 3

    other = load_recipe("fashion-cached", short | {"teacher.store.folder": str(store.folder), "train.epochs": 1})
    calls.clear()
    Experiment(other, tmp_path / "again", notify=told.append, report=False).run()
    assert calls == [*tried, (0, 256)]
    assert any("stored before" in line for line in told)
    changed = load_recipe(
        "fashion-cached", short | {"teacher.store.folder": str(store.folder), "data.augment.shift": 2}
    )
    with pytest.raises(StoreError, match=r"data\.transform: stored ShiftFlip"):
        Experiment(changed, tmp_path / "third").run()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"teacher.store.what": "topk"}, "teacher.store: .*expected logits, hidden, hidden:TAP, topk:K"),
        ({"teacher.store.dtype": "int8"}, "teacher.store.dtype"),
        ({"teacher.batch_statistics": True}, "outputs depend on the batch"),
        ({"data.augment": None}, "without data.augment all views are alike; set views: 1"),
    ],
)
def test_a_recipe_whose_store_makes_no_sense_is_refused_before_anything_runs(overrides, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("fashion-cached", overrides)


def test_kdx_cache_writes_goes_on_verifies_and_its_store_serves_a_recipe(tmp_path, short, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    keys = [f"{key}={json.dumps(value)}" for key, value in short.items() if not key.startswith("teacher.store")]
    command = ["cache", "fashion-cached", *keys, "--out", "sparse", "--what", "topk:3@4", "--views", "2"]
    runner = CliRunner()
    done = runner.invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "topk:3@4 of 256 samples in 2 views" in done.output
    assert runner.invoke(app, ["cache", "--verify", "sparse"]).output == "sparse: 3 files, all as written\n"
    Path("sparse/shard-00001.safetensors").unlink()
    with pytest.raises(StoreError, match="is missing"):
        runner.invoke(app, ["cache", "--verify", "sparse"], catch_exceptions=False)
    assert runner.invoke(app, [*command, "--json"], catch_exceptions=False).exit_code == 0
    assert Store("sparse").verify() == 3
    use = {"teacher.store.folder": "sparse", "teacher.store.what": "topk:3@4", "train.epochs": 1}
    summary = kdx.run("fashion-cached", folder="run", report=False, **(short | use))
    assert summary["stages"]["distilled"]["steps"] == 4
