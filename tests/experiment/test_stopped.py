"""A run that an observer stops: marked, reported, and its stage leaves the test rows alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import kdx
from kdx.experiment.experiment import Experiment
from kdx.experiment.report import stages_table
from kdx.experiment.run_files import read_summary
from kdx.experiment.verify import verify_run
from kdx.training import StageInfo, evaluation
from tests.experiment.tiny import recipe

pytestmark = pytest.mark.filterwarnings("ignore::kdx.experiment.experiment.WeakTeacherWarning")


class Prunes:
    """Stops the distilled student after an epoch, as a search does with a trial that is behind."""

    def __init__(self) -> None:
        self.stages: list[StageInfo] = []

    @kdx.hookimpl
    def kdx_epoch_end(self, run):
        self.stages.append(run.stage)
        if run.stage.role == "distilled" and run.epoch == 1:
            raise kdx.StopRun("<b>behind</b> the others") from LookupError("pruned")


def experiment(folder: Path, *observers, **options) -> Experiment:
    train = {"epochs": 2, "batch_size": 128}
    return Experiment(recipe(train=train), folder, observers, name="tiny", teachers=folder.parent / "kept", **options)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> tuple[Path, list[StageInfo], list[int], kdx.StopRun]:
    folder, rows, plain = tmp_path_factory.mktemp("stopped") / "run", [], evaluation.evaluate
    observer = Prunes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "kdx.experiment.stage_runner.evaluation.evaluate",
            lambda model, loader, **options: rows.append(len(loader.dataset)) or plain(model, loader, **options),
        )
        with pytest.raises(kdx.StopRun) as caught:
            experiment(folder, observer).run()
    return folder, observer.stages, rows, caught.value


def test_an_observer_knows_the_stage_of_its_run(stopped) -> None:
    folder, stages, _, _ = stopped
    names = ["teacher", "alone", "alone", "distilled"]
    assert [stage.name for stage in stages] == names
    assert stages[-1] == StageInfo("distilled", "distilled", ("teacher",), "tiny", folder)


def test_a_run_outside_of_an_experiment_has_no_stage(net, loader) -> None:
    assert kdx.fit(kdx.Supervised(net()), loader, progress=False).stage is None


def test_the_stopped_stage_is_marked_and_its_student_never_sees_the_test_rows(stopped) -> None:
    folder, _, rows, stop = stopped
    assert isinstance(stop.__cause__, LookupError)
    assert (stop.stage, stop.reason, stop.step, stop.epoch) == ("distilled", "<b>behind</b> the others", 10, 1)
    marked = json.loads((folder / "distilled/stopped.json").read_text())
    assert {key: marked[key] for key in ("reason", "step", "epoch")} == {"reason": stop.reason, "step": 10, "epoch": 1}
    assert not (folder / "distilled/result.json").exists()
    test = len(experiment(folder).data.test)
    assert rows.count(test) == 2  # the teacher and the student alone; validation has 100 rows
    assert rows[-2:] == [test, 100]


def test_summary_report_and_table_say_so(stopped) -> None:
    folder, _, _, _ = stopped
    summary = read_summary(folder)
    assert list(summary["stages"]) == ["teacher", "alone"]
    assert summary["gain"] is None
    assert summary["stopped"]["stage"] == "distilled"
    page = (folder / "report.html").read_text()
    assert "Stopped by an observer in stage distilled after step 10, epoch 1: &lt;b&gt;behind&lt;/b&gt;" in page
    assert "<td>distilled student</td><td></td><td>stopped</td>" in page
    table = stages_table(summary)
    assert [cell for column in table.columns for cell in column.cells].count("stopped") == 1
    assert verify_run(folder).damaged == []


def test_a_model_of_the_stopped_stage_cannot_be_loaded(stopped) -> None:
    with pytest.raises(OSError, match=r"no model of stage 'distilled', which was stopped after step 10: <b>behind"):
        kdx.load(stopped[0])


def test_resuming_says_it_again_and_goes_on_once_the_mark_is_gone(stopped) -> None:
    folder, _, _, _ = stopped
    before = (folder / "teacher/result.json").read_bytes()
    with pytest.raises(kdx.StopRun, match=r"(?s)stage 'distilled' was stopped after step 10: .*remove distilled/stopp"):
        experiment(folder).run(resume=True)
    assert (folder / "distilled/stopped.json").exists()
    (folder / "distilled/stopped.json").unlink()
    summary = experiment(folder, report=False).run(resume=True)
    assert list(summary["stages"]) == ["teacher", "alone", "distilled"]
    assert summary["stopped"] is None
    assert (folder / "teacher/result.json").read_bytes() == before
    parts = [stage["compute"]["flops"] for stage in summary["stages"].values() if "compute" in stage]
    assert summary["compute"]["flops"] == sum(parts) > 0
    assert summary["stages"]["distilled"]["compute"]["teacher_samples"] > 0
    whole = experiment(folder.parent / "whole", report=False).run()
    assert summary["stages"]["distilled"]["test"] == whole["stages"]["distilled"]["test"]
