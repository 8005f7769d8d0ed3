"""Stages as they run: what they hand on, produce, train and resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

import kdx
from kdx.errors import KdxError, RecipeError
from kdx.experiment.data import ExperimentData
from kdx.experiment.experiment import Experiment
from kdx.experiment.run_files import read_model
from kdx.hookspecs import hookimpl
from kdx.models import MLP
from kdx.ref import Ref
from kdx.spec import Spec
from kdx.stage import Produced, Stage, Structure, Term
from kdx.tasks import Classification
from kdx.training.batches import ResumableLoader
from tests.experiment.tiny import TINY, recipe, same, weights

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning"),
    pytest.mark.filterwarnings("ignore::kdx.assistants.gap.GapWarning"),
]


def test_a_stage_overrides_scheme_knowledge_training_rows_and_start(run, planned, tmp_path: Path) -> None:
    student = Ref("mlp", hidden=[8, 8])
    stages = [
        Stage("first", "assistant", student, ("teacher",), knowledge={"mse": Term("logits", weight=0.5)}),
        Stage(
            "unmoved",
            "probe",
            student,
            start="first",
            train={"epochs": 2, "schedule": None, "optimizer": Ref("SGD", lr=1e-30)},
        ),
        Stage(
            "distilled",
            "distilled",
            student,
            ("unmoved",),
            task_weight=0.0,
            start="unmoved",
            train={"optimizer": {"name": "SGD", "lr": 0.1}},
        ),
    ]
    summary = run(assistant=planned(stages), data={**TINY["data"], "labelled": 200})
    assert list(summary["stages"]) == ["teacher", "alone", "first", "unmoved", "distilled"]
    logged = {
        name: (tmp_path / "run" / name / "metrics.jsonl").read_text() for name in ("first", "unmoved", "distilled")
    }
    assert "term/mse" in logged["first"]
    assert "term/kd" not in logged["first"]
    assert "term/task" in logged["first"]
    assert "term/task" not in logged["distilled"]
    assert same(weights(tmp_path / "run", "first"), weights(tmp_path / "run", "unmoved"))
    assert summary["stages"]["unmoved"]["steps"] == 2 * summary["stages"]["first"]["steps"]
    # its teacher is itself, so that soft targets move nothing
    moved = weights(tmp_path / "run", "distilled")
    for name, value in weights(tmp_path / "run", "unmoved").items():
        torch.testing.assert_close(moved[name], value, atol=1e-5, rtol=0)
    assert summary["stages"]["distilled"]["teachers"] == ["unmoved"]


class Smaller(Structure):
    """Half of a stage's first hidden layer, with its weights."""

    needs = ("alone",)
    calls = 0

    def produce(self, finished) -> Produced:
        type(self).calls += 1
        model = finished.model("alone")
        ref = Ref("mlp", hidden=[4, 8])
        small = finished.build(ref).state_dict()
        for name, value in model.state_dict().items():
            if small[name].shape == value.shape:
                small[name] = value
            else:
                small[name] = value[tuple(slice(0, size) for size in small[name].shape)].clone()
        assert finished.example.shape == (1, 1, 8, 8)
        assert 0 < finished.quality("alone") <= 1
        assert finished.parameters(ref) == sum(p.numel() for p in finished.build(ref).parameters())
        return Produced(ref, small)


def test_a_stage_may_produce_its_students_structure_once(run, planned, tmp_path: Path) -> None:
    Smaller.calls = 0
    stages = [
        Stage("kept", "untrained", Smaller()),
        Stage("distilled", "distilled", Smaller(), ("teacher",), start="kept"),
    ]
    run(assistant=planned(stages))
    assert Smaller.calls == 2
    folder = tmp_path / "run"
    assert read_model(folder / "kept") == {
        "model": {"name": "mlp", "hidden": [4, 8]},
        "start": True,
    }
    first = "hidden1.0.weight"
    assert weights(folder, "kept")[first].equal(weights(folder, "alone")[first][:4])
    (folder / "summary.json").unlink()
    (folder / "distilled" / "result.json").unlink()
    before = weights(folder, "distilled")
    Experiment(recipe(assistant={"name": "given"}), folder).run(resume=True)
    assert Smaller.calls == 2  # read, not made again
    assert same(before, weights(folder, "distilled"))


class Blind(nn.Linear):
    """A model of three outputs whatever is asked for."""

    def __init__(self, *, num_classes: int = 10, input_shape: tuple[int, ...] = (1, 8, 8)) -> None:
        super().__init__(64, 3)

    def forward(self, x):
        return super().forward(x.flatten(1))


class ToBlind(Structure):
    def produce(self, finished) -> Produced:
        return Produced(Ref("blind"))


class Along(kdx.Offline):
    """Offline distillation that claims to train its teacher."""

    trains_teacher = True
    given: ClassVar[list[nn.Module]] = []

    def __init__(self, student, teacher, *, task, knowledge) -> None:
        self.given.append(teacher)
        super().__init__(student, teacher, task=task, knowledge=knowledge)


@pytest.fixture
def plugin(plugged):
    """Registers the model and the scheme of this file."""

    class Plugin:
        @hookimpl
        def kdx_models(self):
            return [Spec("blind", f"{__name__}:Blind", "for a test")]

        @hookimpl
        def kdx_schemes(self):
            return [Spec("along", f"{__name__}:Along", "for a test")]

    plugged(Plugin(), "of-test-stages")


def test_a_produced_structure_that_breaks_the_contract_is_refused_before_it_is_trained(
    run, planned, plugin, tmp_path: Path
) -> None:
    stages = [Stage("distilled", "distilled", ToBlind(), ("teacher",))]
    with pytest.raises(KdxError, match=r"gives \(1, 3\) torch.float32 where the teacher gives \(1, 10\)"):
        run(assistant=planned(stages))
    assert not (tmp_path / "run" / "distilled" / "model.json").exists()


def test_a_scheme_that_trains_its_teacher_is_given_a_new_one_and_no_stage_trains_it(run, plugin) -> None:
    Along.given.clear()
    summary = run(scheme={"name": "along"}, teacher={"model": TINY["teacher"]["model"]})
    assert list(summary["stages"]) == ["alone", "distilled"]
    tried, trained = Along.given
    assert type(tried) is type(trained) is MLP
    assert tried is not trained


def test_hint_then_distil_goes_on_from_the_hint_stages_weights(run, tmp_path: Path) -> None:
    assistant = {"name": "hint-then-distil", "student_layer": "hidden1", "teacher_layer": "hidden1"}
    run(assistant=assistant, controls=["untrained"])
    folder = tmp_path / "run"
    hint, new = weights(folder, "hint"), weights(folder, "untrained")
    moved = {name for name, value in hint.items() if not value.equal(new[name])}
    assert moved
    assert all(name.startswith("hidden1") for name in moved)
    lines = [json.loads(line) for line in (folder / "hint" / "metrics.jsonl").read_text().splitlines()]
    assert all("term/task" not in line for line in lines)


COMMAND = """
import sys, kdx
from kdx.experiment.recipe_files import load_recipe
kdx.run(load_recipe(sys.argv[1]), folder=sys.argv[2], resume=True)
"""


@pytest.mark.slow
def test_kill_9_in_the_second_stage_of_a_plan_resumes_in_the_second_stage(run, tmp_path: Path) -> None:
    assistant = {"name": "hint-then-distil", "student_layer": "hidden1", "teacher_layer": "hidden1"}
    given = recipe(assistant=assistant, train={"epochs": 12, "batch_size": 128}, controls=[])
    (tmp_path / "recipe.yaml").write_text(given.yaml())
    folder = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", COMMAND, str(tmp_path / "recipe.yaml"), str(folder)]
    process = subprocess.Popen(command, env=environment)
    checkpoints = folder / "distilled" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step-*.pt")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "distilled" / "result.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in (folder / "hint").rglob("*") if path.is_file()}
    resumed: list[int] = []

    class Watch:
        @hookimpl
        def kdx_configure(self, run):
            resumed.append(run.step)

    Experiment(given, folder, [Watch()]).run(resume=True)
    assert len(resumed) == 1  # one stage ran,
    assert resumed[0] > 0  # from its checkpoint
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # the others were only read
    run("whole", given=given)
    for stage in ("hint", "distilled"):
        assert same(weights(folder, stage), weights(tmp_path / "whole", stage)), stage


@pytest.mark.parametrize("scheme", ["offline", "online", "mutual"])
def test_the_student_alone_and_the_taught_one_see_the_rows_in_one_order(scheme, run, monkeypatch) -> None:
    seen: list[list[int]] = []
    epoch = ResumableLoader.epoch

    def watched(stream: ResumableLoader, number: int):
        seen.append([])
        for batch in epoch(stream, number):
            seen[-1] += batch.index.tolist()
            yield batch

    monkeypatch.setattr(ResumableLoader, "epoch", watched)
    teachers = {"offline": TINY["teacher"], "online": {"model": TINY["teacher"]["model"]}, "mutual": None}
    run(scheme={"name": scheme}, teacher=teachers[scheme])
    alone, taught = seen[-2:]
    assert alone == taught


def test_controls_with_smoothed_labels_and_without_the_assistant(run, tmp_path: Path) -> None:
    assistant = {"name": "hint-then-distil", "student_layer": "hidden1", "teacher_layer": "hidden1"}
    summary = run(assistant=assistant, controls=["label-smoothing", "direct"])
    assert list(summary["stages"]) == ["teacher", "alone", "label-smoothing", "direct", "hint", "distilled"]
    smoothed, alone = weights(tmp_path / "run", "label-smoothing"), weights(tmp_path / "run", "alone")
    assert not same(smoothed, alone)
    run("plain")
    assert same(weights(tmp_path / "run", "direct"), weights(tmp_path / "plain", "distilled"))
    with pytest.raises(RecipeError, match="direct compares with an assistant, and there is none"):
        recipe(controls=["direct"])


def test_label_smoothing_is_torchs_on_the_labelled_rows() -> None:
    logits, targets = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 1, -100, 3, 4, -100])
    kept = logits[targets >= 0].log_softmax(1)
    wanted = torch.full((4, 5), 0.1 / 5, dtype=torch.float64)
    wanted[range(4), targets[targets >= 0]] += 0.9
    found = Classification(label_smoothing=0.1)(logits, targets)
    torch.testing.assert_close(found, -(wanted * kept).sum(1).mean())


def test_peers_are_a_count_or_a_list_of_models(run, tmp_path: Path) -> None:
    mutual = {"scheme": {"name": "mutual"}, "teacher": None, "controls": []}
    summary = run("count", **mutual, peers=3)
    assert list(summary["stages"]["distilled"]["students"]) == ["peer0", "peer1", "peer2"]
    run("models", **mutual, peers=[{"name": "mlp", "hidden": [5]}])
    assert weights(tmp_path / "models", "distilled", "peer1")["hidden1.0.weight"].shape[0] == 5
    with pytest.raises(RecipeError, match="scheme 'offline' has no peers"):
        recipe(peers=2)


def test_several_teachers_are_trained_each_as_its_section_says(run, tmp_path: Path) -> None:
    small = {"model": {"name": "mlp", "hidden": [6]}, "train": {"epochs": 2, "batch_size": 128}}
    changes = {"scheme": {"name": "dense-guidance", "drop": 0}, "teachers": {"small": small}}
    stages = run(**changes)["stages"]
    assert list(stages) == ["teacher", "small", "alone", "distilled"]
    assert stages["distilled"]["teachers"] == ["teacher", "small"]
    assert stages["small"]["steps"] == 2 * stages["teacher"]["steps"]
    assert weights(tmp_path / "run", "small")["hidden1.0.weight"].shape[0] == 6
    rows = [json.loads(line) for line in (tmp_path / "run" / "distilled" / "metrics.jsonl").read_text().splitlines()]
    assert {"term/teacher/kd", "term/small/kd", "term/task"} <= rows[0].keys()
    assert len(list((tmp_path / ".teachers").iterdir())) == 2
    again = run("again", **changes, teacher=None)["stages"]  # the second one alone
    assert "reused" in again["small"]
    for change, message in (
        ({"scheme": {"name": "offline"}}, "scheme 'offline' takes no more than one teacher"),
        ({"teachers": {"alone": small}}, "the name 'alone' is taken"),
        ({"teachers": {}, "teacher": None}, "scheme 'dense-guidance' needs teachers"),
        ({"teachers": {"a": {**small, "model": {"name": "mpl"}}}}, r"teachers\.a\.model\.name: .*did you mean 'mlp'"),
    ):
        with pytest.raises(RecipeError, match=message):
            recipe(**{**changes, **change})


def test_a_student_starts_from_given_weights(run, tmp_path: Path) -> None:
    run("one")
    given = {**TINY["student"], "weights": str(tmp_path / "one" / "alone" / "student.safetensors")}
    run("two", student=given, controls=["untrained"])
    assert same(weights(tmp_path / "one", "alone"), weights(tmp_path / "two", "untrained"))


def test_an_experiment_that_is_one_of_many_reads_no_test_row(monkeypatch, tmp_path: Path) -> None:
    seen = []

    def evaluation(self, dataset, given=ExperimentData.evaluation):
        seen.append(dataset)
        return given(self, dataset)

    monkeypatch.setattr(ExperimentData, "evaluation", evaluation)
    experiment = Experiment(recipe(), tmp_path / "run", test=False)
    summary = experiment.run()
    assert seen
    assert not any(dataset is experiment.data.test for dataset in seen)
    assert [stage["test"] for stage in summary["stages"].values()] == [{}] * len(summary["stages"])
    quality = [summary["stages"][name]["validation"]["accuracy"] for name in ("distilled", "alone")]
    assert summary["gain"] == pytest.approx(100 * (quality[0] - quality[1]))
    assert summary["test_rows"] == 0
    assert not (tmp_path / "run" / "report.html").exists()
    assert Experiment(recipe(), tmp_path / "run", test=False).run(resume=True) == summary
