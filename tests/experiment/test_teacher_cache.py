"""Trained teachers that later runs use again."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from itertools import takewhile
from pathlib import Path
from tempfile import gettempdir

import pytest
from safetensors.torch import load_file

from kdx.experiment.experiment import Experiment
from kdx.files import sha256_of, write_json
from kdx.hookspecs import hookimpl
from kdx.spec import Spec
from kdx.training.checkpoint import save_tensors
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


def damaged(entry: Path, damage: str) -> None:
    weights_of, manifest = entry / "student.safetensors", entry / "manifest.json"
    if damage == "weights":
        data = bytearray(weights_of.read_bytes())
        data[-1] ^= 1
        weights_of.write_bytes(data)
    elif damage == "names":  # of the tensors: some can be loaded, and the hash is right
        tensors = load_file(weights_of)
        tensors["more"] = next(iter(tensors.values()))
        save_tensors({name: value + 1 for name, value in tensors.items()}, weights_of)
        write_json(manifest, json.loads(manifest.read_text()) | {"weights": sha256_of(weights_of)})
    elif damage == "missing":
        weights_of.unlink()
    else:
        manifest.write_text(damage)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


DAMAGES = ["weights", "names", "missing", "{"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_kept_teacher_is_told_about_moved_aside_and_trained_anew(damage: str, run, tmp_path: Path) -> None:
    run("one")
    entry = next((tmp_path / ".teachers").iterdir())
    damaged(entry, damage)
    before, told = contents(entry), []
    summary = Experiment(recipe(), tmp_path / "two", notify=told.append, report=False).run()
    assert "seconds" in summary["stages"]["teacher"]
    assert same(weights(tmp_path / "one", "teacher"), weights(tmp_path / "two", "teacher"))
    assert len([message for message in told if "is damaged" in message and "trained anew" in message]) == 1
    aside = entry.with_name(f"{entry.name}.damaged-1")
    assert any(f"the damaged teacher is now {aside}" in message for message in told)
    assert contents(aside) == before
    assert "reused" in run("three")["stages"]["teacher"]


@pytest.mark.parametrize("step", ["manifest.json", "student.safetensors", "folder"])
def test_a_kept_teacher_that_cannot_be_read_is_left_as_it_is(step: str, run, tmp_path: Path, monkeypatch) -> None:
    run("one")
    entry = next((tmp_path / ".teachers").iterdir())
    told: list[str] = []
    if step == "folder":
        (entry / "manifest.json").rename(entry / "other")
        (entry / "manifest.json").mkdir()
    else:
        plain = Path.open

        def broken(path: Path, *arguments, **options):
            if path == entry / step:
                raise OSError(errno.EIO, "Input/output error", str(path))
            return plain(path, *arguments, **options)

        monkeypatch.setattr(Path, "open", broken)
    before = sorted(path.name for path in entry.iterdir())
    summary = Experiment(recipe(), tmp_path / "two", notify=told.append, report=False).run()
    assert "seconds" in summary["stages"]["teacher"]
    assert "damaged" not in " ".join(told)
    assert [message.partition(" (")[0] for message in told if message.startswith("teacher: the")] == [
        f"teacher: the kept teacher {entry} cannot be read",
        f"teacher: the trained teacher is not kept for other runs in {entry}",
    ]
    assert sorted(path.name for path in entry.iterdir()) == before
    assert [path.name for path in (tmp_path / ".teachers").iterdir()] == [entry.name]


@pytest.fixture
def nobody(tmp_path: Path):
    """Acts as another user in a block."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be two users")
    for each in takewhile(lambda folder: folder != Path(gettempdir()), tmp_path.parents):
        each.chmod(0o755)
    tmp_path.chmod(0o777)

    @contextlib.contextmanager
    def acting():
        before = os.umask(0o022)
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
            os.umask(before)

    return acting


def test_two_users_share_the_teachers_that_either_trained(nobody, run, tmp_path: Path) -> None:
    (tmp_path / ".teachers").mkdir(mode=0o777)
    (tmp_path / ".teachers").chmod(0o777)
    run("warm", seed=7)  # what is imported late, the other user may not read
    run("one")
    with nobody():
        summary = run("two")
        assert "reused" in summary["stages"]["teacher"]
        assert "seconds" in run("three", seed=1)["stages"]["teacher"]
    assert "reused" in run("four", seed=1)["stages"]["teacher"]


@pytest.mark.parametrize("how", ["unreadable", "damaged"])
def test_nothing_that_another_user_wrote_is_removed_or_moved(how: str, nobody, run, tmp_path: Path) -> None:
    (tmp_path / ".teachers").mkdir()
    (tmp_path / ".teachers").chmod(0o777)
    run("one")
    entry = next((tmp_path / ".teachers").iterdir())
    if how == "unreadable":
        (entry / "student.safetensors").chmod(0o600)
    else:
        damaged(entry, "weights")
    before, told = contents(entry), []
    with nobody():
        summary = Experiment(recipe(), tmp_path / "two", notify=told.append, report=False).run()
    assert "seconds" in summary["stages"]["teacher"]
    assert contents(entry) == before
    assert [path.name for path in (tmp_path / ".teachers").iterdir()] == [entry.name]
    if how == "unreadable":
        assert any("cannot be read (" in message and "Permission denied" in message for message in told)
    else:
        assert any("a damaged one of another user is there" in message for message in told)


def test_a_cache_that_cannot_be_written_ends_no_training(nobody, run, tmp_path: Path) -> None:
    run("warm", seed=7)
    told: list[str] = []
    with nobody():
        summary = Experiment(recipe(), tmp_path / "two", notify=told.append, report=False).run()
    assert "seconds" in summary["stages"]["teacher"]
    assert "gain" in summary
    assert [message for message in told if "is not kept for other runs" in message and "Permission denied" in message]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("I/O error")])
def test_a_disk_that_is_full_leaves_no_half_of_a_kept_teacher_and_the_run_goes_on(
    error: Exception, run, tmp_path: Path, monkeypatch
) -> None:
    def full(path: Path) -> str:
        raise error

    monkeypatch.setattr("kdx.experiment.teacher_cache.sha256_of", full)
    told: list[str] = []
    summary = Experiment(recipe(), tmp_path / "one", notify=told.append, report=False).run()
    assert "seconds" in summary["stages"]["teacher"]
    assert any("is not kept for other runs" in message and str(error) in message for message in told)
    assert list((tmp_path / ".teachers").iterdir()) == []


def test_what_a_killed_run_left_of_a_teacher_is_removed_by_the_next(run, tmp_path: Path) -> None:
    run("one")
    entry = next((tmp_path / ".teachers").iterdir())
    entry.rename(entry.with_name(f".{entry.name}.17.tmp"))
    (tmp_path / ".teachers" / f".{entry.name}.lock").write_text("")
    other = tmp_path / ".teachers" / ".0123.17.tmp"  # of another teacher, which another run may be writing
    other.mkdir()
    assert "seconds" in run("two")["stages"]["teacher"]
    assert {path.name for path in (tmp_path / ".teachers").iterdir()} == {entry.name, other.name}


SECOND = """
import json, sys
from pathlib import Path
from kdx.experiment.experiment import Experiment
from tests.experiment.tiny import recipe
def told(message):
    print(message, flush=True)
summary = Experiment(recipe(), Path(sys.argv[1]), notify=told, report=False).run()
print("reused" if "reused" in summary["stages"]["teacher"] else "trained")
"""


class Until:
    """Waits amid the training until something is the case."""

    def __init__(self, case) -> None:
        self.case = case

    @hookimpl
    def kdx_step_end(self) -> None:
        while not self.case():
            time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["well", "failed"])
def test_a_second_run_waits_for_the_one_that_trains_the_same_teacher(ends: str, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    said: list[str] = []
    command = [sys.executable, "-c", SECOND, str(tmp_path / "two")]
    second: list[subprocess.Popen] = []

    def waits() -> bool:
        if not second:
            second.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root))
            said.append(second[0].stdout.readline())
        if ends == "failed":
            raise KeyboardInterrupt
        return True

    first = Experiment(recipe(), tmp_path / "one", [Until(waits)], report=False)
    with contextlib.suppress(KeyboardInterrupt):
        first.run()
    rest = second[0].communicate(timeout=100)[0].splitlines()
    assert said[0].startswith(f"teacher: waiting for the same teacher in {tmp_path / '.teachers'}, on which process ")
    assert f"process {os.getpid()} on " in said[0]
    assert rest[-1] == ("reused" if ends == "well" else "trained")
    if ends == "well":
        assert same(weights(tmp_path / "one", "teacher"), weights(tmp_path / "two", "teacher"))


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
