"""Trained teachers that later runs use again."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest

from kdx.experiment.experiment import Experiment
from kdx.hookspecs import hookimpl
from kdx.spec import Spec
from tests.experiment.tiny import TINY, recipe, same, weights

pytestmark = [
    pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning"),
    pytest.mark.filterwarnings("ignore::kdx.assistants.gap.GapWarning"),
]


def test_a_teacher_is_reused_by_hash_and_a_changed_key_trains_anew(run, tmp_path: Path) -> None:
    first = run("one")["stages"]
    again = run("two", train={"epochs": 2, "batch_size": 128}, data={**TINY["data"], "labelled": 200})["stages"]
    assert "seconds" in first["teacher"]
    assert again["teacher"]["reused"] == str(next((tmp_path / ".teachers").iterdir()))
    assert again["teacher"]["test"] == first["teacher"]["test"]
    assert same(weights(tmp_path / "one", "teacher"), weights(tmp_path / "two", "teacher"))
    teacher = TINY["teacher"]
    changes = {
        "seed": {"seed": 1},
        "model": {"teacher": {**teacher, "model": {"name": "mlp", "hidden": [24]}}},
        "train": {"teacher": {**teacher, "train": {"epochs": 1, "batch_size": 64}}},
        "rows": {"data": {**TINY["data"], "validation": 101}},
        "augment": {"data": {**TINY["data"], "augment": {"shift": 1}}},
        "reuse": {"teacher": {**teacher, "reuse": False}},
    }
    for name, change in changes.items():
        assert "seconds" in run(name, **change)["stages"]["teacher"], name
    assert len(list((tmp_path / ".teachers").iterdir())) == len(changes)  # one each, none for reuse=False


@pytest.mark.parametrize("nested", [False, True], ids=["option", "nested"])
def test_a_teacher_built_from_a_file_is_known_by_what_is_in_the_file_and_not_by_its_path(
    nested: bool, run, tmp_path: Path
) -> None:
    def teacher(path: Path, dropout: float) -> dict:
        base = {"name": "mlp", "hidden": [24, 16], "dropout": dropout}  # the shapes of its weights are the same
        path.write_text(json.dumps({"base": base, "edits": []}))
        model = {"name": "derived", "config": str(path)}
        if nested:
            model = {"name": "residual-sum", "student": model, "assistant": {"name": "mlp", "hidden": [4]}}
        return {**TINY["teacher"], "model": model}

    assert "seconds" in run("one", teacher=teacher(tmp_path / "a.json", 0.0))["stages"]["teacher"]
    assert "seconds" in run("two", teacher=teacher(tmp_path / "a.json", 0.5))["stages"]["teacher"]
    assert "reused" in run("three", teacher=teacher(tmp_path / "b.json", 0.5))["stages"]["teacher"]
    assert "reused" in run("four", teacher=teacher(tmp_path / "a.json", 0.0))["stages"]["teacher"]


def test_the_distilled_student_is_the_same_whether_its_teacher_was_trained_or_reused(run, tmp_path: Path) -> None:
    run("one")
    run("two")
    assert same(weights(tmp_path / "one", "distilled"), weights(tmp_path / "two", "distilled"))


@pytest.mark.parametrize("damage", ["weights", "manifest", "missing"])
def test_a_damaged_kept_teacher_is_told_about_and_trained_anew(damage: str, run, tmp_path: Path) -> None:
    run("one")
    entry = next((tmp_path / ".teachers").iterdir())
    if damage == "weights":
        data = bytearray((entry / "student.safetensors").read_bytes())
        data[-1] ^= 1
        (entry / "student.safetensors").write_bytes(data)
    elif damage == "manifest":
        (entry / "manifest.json").write_text("{")
    else:
        (entry / "student.safetensors").unlink()
    told: list[str] = []
    summary = Experiment(recipe(), tmp_path / "two", notify=told.append).run()
    assert "seconds" in summary["stages"]["teacher"]
    assert any("is damaged" in message and "trained anew" in message for message in told)
    assert "reused" in run("three")["stages"]["teacher"]


def test_a_disk_that_is_full_leaves_no_half_of_a_kept_teacher(run, tmp_path: Path, monkeypatch) -> None:
    def full(path: Path) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kdx.experiment.teacher_cache._sha256", full)
    with pytest.raises(OSError, match="No space left"):
        run("one")
    assert list((tmp_path / ".teachers").iterdir()) == []
    monkeypatch.undo()
    summary = Experiment(recipe(), tmp_path / "one").run(resume=True)
    assert "seconds" in summary["stages"]["teacher"]


NET = """
from torch import nn

def net(num_classes: int = 10, input_shape: tuple[int, ...] = (1, 8, 8)) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, num_classes))
"""


def test_a_teacher_is_trained_anew_when_the_code_of_its_model_has_changed(
    run, plugged, tmp_path: Path, monkeypatch
) -> None:
    class Plugin:
        @hookimpl
        def kdx_models(self):
            return [Spec("edited-net", "kdx_test_edited:net", "for a test")]

    plugged(Plugin(), "edited")
    monkeypatch.syspath_prepend(str(tmp_path))
    teacher = {**TINY["teacher"], "model": {"name": "edited-net"}}
    found = []
    try:
        for name, code in {"one": NET, "two": NET, "three": NET.replace("ReLU", "Tanh")}.items():
            (tmp_path / "kdx_test_edited.py").write_text(code)
            sys.modules.pop("kdx_test_edited", None)
            importlib.invalidate_caches()
            shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
            found.append("reused" in run(name, teacher=teacher)["stages"]["teacher"])
    finally:
        sys.modules.pop("kdx_test_edited", None)
    assert found == [False, True, False]
