"""The main job end to end: a shortened demo, its folder, resuming after kill -9, signals, the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import kdx
from kdx.errors import Interrupted, RecipeError, RunExistsError
from kdx.experiment.experiment import Experiment, WeakTeacherWarning
from kdx.experiment.recipe_files import load_recipe
from kdx.experiment.run_files import read_summary
from kdx.hookspecs import hookimpl
from kdx.store.fingerprint import digest_of, tensor_digests
from kdx.training.evaluation import evaluate
from tests.experiment.tiny import recipe

ROOT = Path(__file__).parents[2]
SHORT = {
    "data.validation": 150,
    "data.labelled": 100,
    "teacher.train.epochs": 2,
    "teacher.model.width": 4,
    "student.model.width": 2,
    "train.epochs": 2,
    "threads": 1,
}
"""The demo with 600 training images of ``fashion_folder`` and small models: ten steps an epoch."""

pytestmark = pytest.mark.filterwarnings("ignore::kdx.experiment.experiment.WeakTeacherWarning")


def kdx_command(*arguments: str, cwd: Path, **options) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "kdx", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False, **options)


@pytest.fixture(scope="module", autouse=True)
def _few_images(fashion_folder: Path) -> None:
    SHORT["data.dataset.root"] = str(fashion_folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "demo"
    kdx.run("fashion-offline", folder=folder, **SHORT)
    return folder


def test_the_folder_holds_everything_a_run_is(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "recipe.yaml",
        "environment.json",
        "summary.json",
        "report.html",
        "report.png",
        "teacher",
        "alone",
        "distilled",
    }
    for stage in ("teacher", "alone", "distilled"):
        names = {path.name for path in (finished / stage).iterdir()}
        assert names == {"metrics.jsonl", "tensorboard", "checkpoints", "student.safetensors", "result.json"}
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["seed"] == 0
    assert (finished / "report.png").read_bytes().startswith(b"\x89PNG")
    page = (finished / "report.html").read_text()
    assert "distilled student" in page
    assert "temperature: 4.0" in page


def test_the_summary_is_what_the_exported_models_do_on_the_test_set(finished: Path) -> None:
    summary = read_summary(finished)
    assert list(summary["stages"]) == ["teacher", "alone", "distilled"]
    recipe = load_recipe(finished / "recipe.yaml")
    experiment = Experiment(recipe, finished)
    for name, stage in summary["stages"].items():
        model = kdx.make(
            "model", "convnet", **({"width": 4} if name == "teacher" else {"width": 2, "stages": 2, "grid": 7})
        )
        model.load_state_dict(load_file(finished / stage["weights"]))
        assert evaluate(model, experiment.data.evaluation(experiment.data.test))["accuracy"] == pytest.approx(
            stage["test"]["accuracy"]
        )
        assert stage["parameters"] == sum(p.numel() for p in model.parameters())
        assert stage["latency_ms"] > 0
        if name == "teacher":
            fingerprints = {"teacher": digest_of(tensor_digests(model))}
    assert [stage.get("fingerprints") for stage in summary["stages"].values()] == [None, None, fingerprints]
    accuracy = {name: stage["test"]["accuracy"] for name, stage in summary["stages"].items()}
    assert summary["gain"] == pytest.approx(100 * (accuracy["distilled"] - accuracy["alone"]))
    assert summary["stages"]["alone"]["steps"] == summary["stages"]["distilled"]["steps"] == 20


def test_no_test_image_is_seen_before_the_end_and_the_splits_are_disjoint(finished: Path) -> None:
    experiment = Experiment(load_recipe(finished / "recipe.yaml"), finished)
    data = experiment.data
    rows = {name: set(getattr(data, name).indices.tolist()) for name in ("all", "few", "labelled", "validation")}
    assert not rows["validation"] & rows["all"]
    assert rows["labelled"] < rows["all"]
    assert rows["few"] == rows["all"]
    assert (data.few.targets >= 0).sum() == len(rows["labelled"]) == 100
    assert data.test.dataset is not data.all.dataset


def test_a_run_is_never_overwritten(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(RunExistsError, match="--resume goes on with it"):
        kdx.run("fashion-offline", folder=finished, **SHORT)
    before = read_summary(finished)
    assert kdx.run("fashion-offline", folder=finished, resume=True, **SHORT) == before
    with pytest.raises(RecipeError, match=r"started with another recipe \(train.epochs: 2 -> 3\)"):
        kdx.run("fashion-offline", folder=finished, resume=True, **{**SHORT, "train.epochs": 3})
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    with pytest.raises(RunExistsError, match="is not empty and holds no run"):
        kdx.run("fashion-offline", folder=other, **SHORT)


STARTED = ("environment.json", ".environment.json.17.tmp", ".recipe.yaml.17.tmp")


@pytest.mark.parametrize("left", [STARTED[:1], STARTED[1:2], STARTED], ids=["environment", "temporary", "both"])
@pytest.mark.parametrize("resume", [False, True], ids=["again", "resumed"])
def test_a_run_that_was_killed_before_its_recipe_was_written_is_begun_anew(left, resume: bool, tmp_path: Path) -> None:
    for name in left:
        (tmp_path / name).write_text("{}")
    experiment = Experiment(load_recipe("fashion-offline", SHORT), tmp_path)
    experiment._claim(ExitStack(), resume=resume, force=False)
    assert load_recipe(tmp_path / "recipe.yaml") == experiment.recipe
    assert json.loads((tmp_path / "environment.json").read_text())["seed"] == 0


@pytest.mark.parametrize("other", ["thesis.tmp", ".thesis.tex.17.tmp", "summary.json", "teacher/result.json"])
def test_what_no_start_of_a_run_leaves_behind_is_not_taken_for_one(other: str, tmp_path: Path) -> None:
    for name in ("environment.json", other):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    for resume in (False, True):
        with pytest.raises(RunExistsError, match="is not empty and holds no run"):
            Experiment(load_recipe("fashion-offline", SHORT), tmp_path)._claim(ExitStack(), resume=resume, force=False)
    assert (tmp_path / "environment.json").read_text() == "mine"


def test_force_moves_the_old_run_aside(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("old")
    experiment = Experiment(load_recipe("fashion-offline", SHORT), folder)
    experiment._claim(ExitStack(), resume=False, force=True)
    assert (tmp_path / "run.old-1" / "recipe.yaml").read_text() == "old"
    assert load_recipe(folder / "recipe.yaml") == experiment.recipe


def test_a_teacher_can_be_loaded_instead_of_trained(finished: Path, tmp_path: Path) -> None:
    weights = finished / "teacher" / "student.safetensors"
    summary = kdx.run("fashion-offline", folder=tmp_path / "run", **SHORT, **{"teacher.weights": str(weights)})
    told = read_summary(finished)
    assert summary["stages"]["teacher"]["test"] == told["stages"]["teacher"]["test"]
    assert summary["stages"]["teacher"]["loaded"] == str(weights)
    assert summary["stages"]["distilled"]["test"] == told["stages"]["distilled"]["test"]


def test_a_weak_teacher_is_a_warning(tmp_path: Path) -> None:
    overrides = {
        **SHORT,
        "teacher.train.schedule.max_lr": 1e-9,
        "teacher.train.optimizer.weight_decay": 0.0,
        "train.epochs": 1,
    }
    with pytest.warns(WeakTeacherWarning, match="is weaker than the student"):
        summary = kdx.run("fashion-offline", folder=tmp_path / "run", **overrides)
    assert "weaker than the student" in summary["warnings"][0]
    assert "weaker than the student" in (tmp_path / "run" / "report.html").read_text()


def test_an_interrupted_experiment_resumes_in_its_stage_and_ends_the_same(finished: Path, tmp_path: Path) -> None:
    class Stop:
        @hookimpl
        def kdx_step_end(self, run, step):
            if run.folder.name == "alone" and step == 13:
                os.kill(os.getpid(), signal.SIGTERM)

    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        kdx.run("fashion-offline", folder=folder, observers=[Stop()], **SHORT)
    assert (folder / "teacher" / "result.json").exists()
    assert not (folder / "alone" / "result.json").exists()
    trained = (folder / "teacher" / "student.safetensors").stat().st_mtime_ns
    kdx.run("fashion-offline", folder=folder, resume=True, **SHORT)
    assert (folder / "teacher" / "student.safetensors").stat().st_mtime_ns == trained
    for stage in ("teacher", "alone", "distilled"):
        expected = load_file(finished / stage / "student.safetensors")
        for name, value in load_file(folder / stage / "student.safetensors").items():
            assert value.equal(expected[name]), (stage, name)


@pytest.mark.slow
def test_kill_9_in_the_middle_leaves_a_run_that_resumes_to_the_same_end(finished: Path, tmp_path: Path) -> None:
    overrides = [f"{key}={value}" for key, value in SHORT.items()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "kdx", "run", "fashion-offline", "--folder", "run", *overrides]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    checkpoints = tmp_path / "run" / "alone" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step-*.pt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert list(checkpoints.glob("step-*.pt"))
    done = kdx_command("run", "fashion-offline", "--folder", "run", "--resume", *overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "distilled student" in done.stdout
    expected = load_file(finished / "distilled" / "student.safetensors")
    for name, value in load_file(tmp_path / "run" / "distilled" / "student.safetensors").items():
        assert value.equal(expected[name]), name


def test_mutual_learning_runs_from_a_recipe(fashion_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "mutual.yaml"
    path.write_text(
        f"""
summary: two peers
data: {{dataset: {{name: fashion-mnist, root: {fashion_folder}}}, validation: 150}}
student: {{model: {{name: convnet, width: 2}}}}
scheme: {{name: mutual}}
knowledge: {{kd: {{name: soft-targets, temperature: 1.0}}}}
train: {{epochs: 1}}
controls: []
"""
    )
    summary = kdx.run(path, folder=tmp_path / "run")
    assert list(summary["stages"]) == ["distilled"]
    assert summary["gain"] is None
    assert (tmp_path / "run" / "distilled" / "peer1.safetensors").exists()


def test_metric_learning_on_novel_classes(tmp_path: Path) -> None:
    short = {"teacher.train.epochs": 2, "train.epochs": 2, "teacher.model.width": 4, "data.validation": 400}
    experiment = Experiment(load_recipe("digits-rkd", short), tmp_path / "run")
    data, novel = experiment.data, {5, 6, 7, 8, 9}
    seen = {item.targets for view in (data.all, data.validation) for item in view}
    test = {item.targets for item in data.test}
    assert (seen, test) == ({0, 1, 2, 3, 4}, novel)
    assert len(data.test) == sum(
        int((kdx.make("dataset", "digits", split=s).targets >= 5).sum()) for s in ("train", "test")
    )
    summary = experiment.run()
    assert list(summary["stages"]) == ["teacher", "alone", "untrained", "distilled"]
    assert summary["metric"] == "recall_at_1"
    assert "term/task" not in (tmp_path / "run" / "distilled" / "metrics.jsonl").read_text()  # no labels
    weights = load_file(tmp_path / "run" / "untrained" / "student.safetensors")
    torch.manual_seed(0)
    fresh = kdx.make("model", "convnet", width=8, stages=2, num_classes=32, input_shape=(1, 8, 8))
    assert all(value.equal(weights[name]) for name, value in fresh.state_dict().items())
    with pytest.raises(RecipeError, match=r"novel_classes: the data set has classes 0 \.\. 9, got 12"):
        _ = Experiment(load_recipe("digits-rkd", {"data.novel_classes": [12]}), tmp_path / "other").data
    with pytest.raises(RecipeError, match=r"task \(classification\): unknown option 'width'"):
        load_recipe("digits-rkd", {"task.name": "classification"})


def test_a_run_folder_with_a_link_is_refused_before_anything_is_read_or_written(tmp_path) -> None:
    kdx.run(recipe(), folder=tmp_path / "run", report=False)
    for name in ("summary.json", "recipe.yaml", "alone"):
        path = tmp_path / "run" / name
        moved = path.rename(tmp_path / path.name)
        path.symlink_to(moved)
        with pytest.raises(RunExistsError, match=f"{name} is a link to"):
            kdx.run(recipe(), folder=tmp_path / "run", resume=True)
        path.unlink()
        moved.rename(path)
    assert kdx.run(recipe(), folder=tmp_path / "run", resume=True)["stages"]


def test_leftovers_of_killed_runs_are_gone_when_the_run_is_resumed(tmp_path) -> None:
    kdx.run(recipe(), folder=tmp_path / "run", report=False)
    left = [tmp_path / "run" / name for name in (".summary.json.1.tmp", "alone/.result.json.22.tmp")]
    for path in left:
        path.write_text("{")
    kdx.run(recipe(), folder=tmp_path / "run", resume=True)
    assert not any(path.exists() for path in left)
