"""Finished models: who is asked for them, what they get, what is measured of what they give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import nn

import kdx
from kdx.artifact import FinishedStudent
from kdx.errors import DamagedError, ExportError, PluginError
from kdx.experiment.experiment import Experiment
from kdx.experiment.finishing import finalise, measure
from kdx.experiment.verify import verify_run
from kdx.observers.dispatch import Observers
from kdx.ref import Ref
from kdx.spec import Spec
from kdx.students.derivation import Derivation
from kdx.students.edit import Edit, Origin, Plan
from tests.experiment.tiny import recipe, weights

pytestmark = [
    pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning"),
    pytest.mark.filterwarnings("ignore::kdx.assistants.gap.GapWarning"),
]
CONTROLS = {"controls": ["alone", "untrained", "label-smoothing"]}


class AsFile:
    """Writes every student's weights to a file of its own, and keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[FinishedStudent] = []
        self.students: list[nn.Module] = []

    @kdx.hookimpl
    def kdx_finalise(self, stage, student):
        self.asked.append(stage)
        self.students.append(student)
        path = stage.folder / "program.pt"
        torch.save(student.state_dict(), path)
        return kdx.Artifact("program", student, [path])


class Gives:
    """Gives one thing for the distilled student."""

    def __init__(self, give) -> None:
        self.give = give

    @kdx.hookimpl
    def kdx_finalise(self, stage, student):
        return self.give(stage, student) if stage.role == "distilled" else None


def text(stage: FinishedStudent, name: str = "note.txt") -> Path:
    path = stage.folder / name
    path.write_text("1234")
    return path


def finished(folder: Path, observer, **changes) -> dict[str, Any]:
    return Experiment(recipe(**changes), folder, [observer], report=False).run()


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> tuple[Path, AsFile, dict[str, Any]]:
    """A run whose students are written as programs."""
    folder, observer = tmp_path_factory.mktemp("programs") / "run", AsFile()
    return folder, observer, finished(folder, observer, **CONTROLS)


def test_trained_students_are_finished_and_teachers_and_untrained_ones_are_not(programs) -> None:
    folder, observer, summary = programs
    assert [stage.role for stage in observer.asked] == ["alone", "label-smoothing", "distilled"]
    assert set(summary["stages"]) == {"teacher", "alone", "label-smoothing", "untrained", "distilled"}
    with_files = [name for name, stage in summary["stages"].items() if stage["artifacts"]]
    assert sorted(with_files) == ["alone", "distilled", "label-smoothing"]
    assert [stage.folder for stage in observer.asked] == [folder / stage.name for stage in observer.asked]


def test_an_artifact_is_judged_timed_and_weighed_like_its_student(programs) -> None:
    folder, _, summary = programs
    for name in ("alone", "distilled"):
        stage = summary["stages"][name]
        artifact = stage["artifacts"]["program"]
        assert artifact["validation"] == stage["validation"]
        assert artifact["test"] == stage["test"]
        assert artifact["latency_ms"] > 0
        path = folder / name / "program.pt"
        assert artifact["bytes"] == path.stat().st_size
        assert artifact["bits"] == 8 * artifact["bytes"] / stage["parameters"]
        assert artifact["files"] == {"program.pt": stage["files"]["program.pt"]}
        assert json.loads((folder / name / "result.json").read_text())["artifacts"] == {"program": artifact}


def test_who_finishes_sees_the_example_and_the_rows(programs) -> None:
    _, observer, _ = programs
    stage = observer.asked[-1]
    assert stage.example.shape == (1, 1, 8, 8)
    few = [batch.inputs for batch in stage.batches()]
    assert torch.cat(few).equal(torch.cat([batch.inputs for batch in stage.batches("few")]))
    assert sum(map(len, few)) > 1000
    assert sum(len(batch.inputs) for batch in stage.batches("validation")) == 100
    assert stage.task.metric == "accuracy"
    assert not any(module.training for module in observer.students[-1].modules())


def test_a_damaged_file_of_an_artifact_is_found(programs, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(programs[0], folder)
    assert verify_run(folder).damaged == []
    assert "distilled/program.pt" in verify_run(folder).files
    with (folder / "distilled" / "program.pt").open("ab") as file:
        file.write(b"more")
    assert any("program.pt is damaged" in each for each in verify_run(folder).damaged)
    (folder / "summary.json").unlink()
    with pytest.raises(DamagedError, match=r"program\.pt is damaged"):
        Experiment(recipe(**CONTROLS), folder, report=False).run(resume=True)


def test_a_finished_stage_is_not_asked_again(programs, tmp_path: Path) -> None:
    import shutil

    folder, again = tmp_path / "run", AsFile()
    shutil.copytree(programs[0], folder)
    (folder / "summary.json").unlink()
    summary = Experiment(recipe(**CONTROLS), folder, [again], report=False).run(resume=True)
    assert again.asked == []
    assert summary["stages"]["distilled"]["artifacts"] == programs[2]["stages"]["distilled"]["artifacts"]


def test_what_an_observer_does_to_its_copy_changes_no_student(tmp_path: Path) -> None:
    def spoilt(stage, student):
        with torch.no_grad():
            for value in student.parameters():
                value.zero_()
        return kdx.Artifact("spoilt", student, [text(stage)])

    summary = finished(tmp_path / "run", Gives(spoilt))
    stage = summary["stages"]["distilled"]
    assert stage["artifacts"]["spoilt"]["test"] != stage["test"]
    assert all(value.abs().sum() > 0 for value in weights(tmp_path / "run", "distilled").values())


def test_anything_that_can_be_called_is_judged(tmp_path: Path) -> None:
    def constant(stage, student):
        return [
            kdx.Artifact("function", lambda inputs: torch.eye(10)[torch.zeros(len(inputs), dtype=int)], [text(stage)]),
            kdx.Artifact("student", student.forward, [text(stage, "a.txt"), text(stage, "b.txt")]),
        ]

    stage = finished(tmp_path / "run", Gives(constant))["stages"]["distilled"]
    assert stage["artifacts"]["function"]["test"]["accuracy"] < 0.2
    assert stage["artifacts"]["student"]["test"] == stage["test"]
    assert stage["artifacts"]["student"]["bytes"] == 8


class Rounded(Edit):
    how: Literal["rounded"] = "rounded"

    def build(self, model: nn.Module) -> None:
        pass

    def derive(self, model: nn.Module, inputs: Any) -> dict[str, Origin]:
        return {}

    def finalise(self, model: nn.Module, stage: FinishedStudent) -> kdx.Artifact:
        with torch.no_grad():
            for value in model.parameters():
                value.mul_(16).round_().div_(16)
        return kdx.Artifact("rounded", model, [text(stage)])


class ByRounded(Derivation):
    edit: ClassVar[type[Edit]] = Rounded
    needs_budget = False

    def plan(self, model: nn.Module, inputs: Any) -> Plan:
        return Plan(2, lambda place: Rounded(), [])


def test_the_edits_of_a_derived_student_finish_it_without_an_observer(plugged, tmp_path: Path) -> None:
    class Plugin:
        @kdx.hookimpl
        def kdx_students(self):
            return [Spec("rounded", f"{__name__}:ByRounded", "for a test")]

    plugged(Plugin(), "rounding")
    student = {"model": {"name": "derived", "how": "rounded"}}
    summary = Experiment(recipe(student=student), tmp_path / "run", report=False).run()
    assert list(summary["stages"]["distilled"]["artifacts"]) == ["rounded"]
    assert list(summary["stages"]["alone"]["artifacts"]) == ["rounded"]
    assert summary["stages"]["teacher"]["artifacts"] == {}


@pytest.mark.parametrize(
    ("give", "error", "message"),
    [
        (
            lambda stage, student: 3,
            PluginError,
            r"observer .*Gives.* gave a int for stage distilled; expected kdx\.Art",
        ),
        (
            lambda stage, student: [kdx.Artifact("one", student, [text(stage)])] * 2,
            PluginError,
            "two artifacts named 'one'; name them differently",
        ),
        (
            lambda stage, student: kdx.Artifact("one", student, [stage.folder / "nothing"]),
            PluginError,
            r"nothing is no file; list the files written",
        ),
        (
            lambda stage, student: kdx.Artifact("one", student, [Path(__file__)]),
            PluginError,
            "is not in the folder of the stage; write it to",
        ),
        (
            lambda stage, student: kdx.Artifact("One", student, [text(stage)]),
            PluginError,
            "failed in kdx_finalise: ValueError: name of an artifact: expected kebab-case",
        ),
        (lambda stage, student: kdx.Artifact("one", student, []), PluginError, "files: expected a list of the files"),
        (lambda stage, student: kdx.Artifact("one", 3, [text(stage)]), PluginError, "wrap it in a function"),
        (
            lambda stage, student: kdx.Artifact("one", lambda inputs: 1 / 0, [text(stage)]),
            ExportError,
            "artifact 'one' of stage distilled cannot be evaluated: .*division by zero",
        ),
        (lambda stage, student: 1 / 0, PluginError, "failed in kdx_finalise: ZeroDivisionError"),
    ],
    ids=["type", "twice", "nothing", "elsewhere", "name", "no files", "model", "fails to run", "fails"],
)
def test_what_is_no_artifact_is_refused_with_who_gave_it(give, error, message: str, net, tmp_path: Path) -> None:
    rows = [kdx.Batch(torch.zeros(4, 1, 8, 8), torch.arange(4) % 3)]
    task = kdx.make("task", "classification")
    stage = FinishedStudent("distilled", "distilled", tmp_path, rows[0].inputs[:1], task, lambda _: rows)

    def finish() -> None:
        (artifact,) = finalise(stage, net(), Ref("mlp"), Observers([Gives(give)]))
        measure(artifact, stage, net(), {"validation": stage.batches})

    with pytest.raises(error, match=message):
        finish()


def test_a_run_stopped_by_who_finishes_it_reads_no_test_row(tmp_path: Path) -> None:
    def stop(stage, student):
        raise kdx.StopRun("too large")

    with pytest.raises(kdx.StopRun, match="too large"):
        finished(tmp_path / "run", Gives(stop))
    assert not (tmp_path / "run" / "distilled" / "result.json").exists()
    assert json.loads((tmp_path / "run" / "distilled" / "stopped.json").read_text())["reason"] == "too large"


def test_an_observer_that_only_finishes_is_an_observer_of_a_run_too(net, images) -> None:
    observer = AsFile()
    kdx.fit(kdx.Supervised(net()), [images], epochs=1, observers=[observer], progress=False)
    assert observer.asked == []
