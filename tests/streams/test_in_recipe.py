"""Recipes that train on a stream: tested before trained on, reported over time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import kdx
from kdx.errors import RecipeError
from kdx.experiment.experiment import Experiment
from kdx.experiment.recipe_files import check_recipe
from kdx.experiment.report import draw_curves
from kdx.hookspecs import hookimpl
from tests.experiment.tiny import same, weights

RECIPE = {
    "threads": 1,
    "data": {"dataset": {"name": "digits"}, "validation": 100, "stream": {"phases": 5}},
    "student": {"model": {"name": "mlp", "hidden": [16]}},
    "scheme": {"name": "mutual"},
    "knowledge": {"kd": {"name": "soft-targets"}},
    "train": {"steps": 60, "batch_size": 16, "optimizer": {"name": "AdamW", "lr": 0.01}},
}


@pytest.mark.filterwarnings("ignore::kdx.experiment.experiment.WeakTeacherWarning")
def test_the_report_shows_what_every_model_said_about_batches_that_it_had_not_seen(tmp_path) -> None:
    told: list[str] = []
    summary = Experiment(check_recipe(RECIPE), tmp_path / "run", notify=told.append).run()
    assert summary["stages"]["alone"]["steps"] == summary["stages"]["distilled"]["steps"] == 60
    found = {name: stage["prequential"] for name, stage in summary["stages"].items()}
    assert found["alone"].keys() == {"student"}
    assert found["distilled"].keys() == {"peer0", "peer1"}
    for values in found.values():
        assert all(0.2 < value < 1 for value in values.values())  # two classes at the start, ten at the end
    assert any(line.startswith("alone: accuracy on each batch before training on it: student") for line in told)
    rows = [json.loads(line) for line in (tmp_path / "run" / "distilled" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "prequential/peer0" in row] == [50, 60]
    curves = draw_curves(tmp_path / "run", summary).axes[2]
    assert [line.get_label() for line in curves.lines] == [
        "student alone",
        "distilled student: peer0",
        "distilled student: peer1",
    ]
    assert (tmp_path / "run" / "report.html").exists()


class Stop:
    """Ends every stage after a step, as early stopping does."""

    def __init__(self, step: int) -> None:
        self.step = step

    @hookimpl
    def kdx_step_end(self, run, step):
        if step == self.step:
            run.stop("for a test")


@pytest.mark.filterwarnings("ignore::kdx.experiment.experiment.WeakTeacherWarning")
def test_a_stage_that_stops_before_its_first_log_has_no_accuracy_so_far(tmp_path) -> None:
    told: list[str] = []
    summary = Experiment(check_recipe(RECIPE), tmp_path / "run", [Stop(3)], notify=told.append).run()
    assert {name: stage["steps"] for name, stage in summary["stages"].items()} == {"alone": 3, "distilled": 3}
    assert all(stage["prequential"] == {} for stage in summary["stages"].values())
    assert not [line for line in told if "accuracy on each batch" in line]
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.filterwarnings("ignore::kdx.experiment.experiment.WeakTeacherWarning")
def test_a_stage_that_stops_after_a_log_keeps_the_accuracy_of_that_log(tmp_path) -> None:
    summary = Experiment(check_recipe(RECIPE), tmp_path / "run", [Stop(53)]).run()
    rows = [json.loads(line) for line in (tmp_path / "run" / "distilled" / "metrics.jsonl").read_text().splitlines()]
    (logged,) = [row for row in rows if "prequential/peer0" in row]
    assert summary["stages"]["distilled"]["prequential"] == {
        name: logged[f"prequential/{name}/so_far"] for name in ("peer0", "peer1")
    }


COMMAND = """
import sys, kdx
from kdx.experiment.recipe_files import load_recipe
kdx.run(load_recipe(sys.argv[1]), folder=sys.argv[2], resume=True)
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::kdx.experiment.experiment.WeakTeacherWarning")
def test_kill_9_amid_a_stream_loses_a_tenth_of_the_stage_at_most_and_resumes_exactly(tmp_path) -> None:
    # the schedule and the ramp of ps-kd move with the steps and with the passes (75 steps each)
    train = {**RECIPE["train"], "steps": 400, "schedule": {"name": "StepLR", "step_size": 1, "every": "epoch"}}
    given = check_recipe(RECIPE | {"train": train, "controls": [], "scheme": {"name": "ps-kd"}})
    (tmp_path / "recipe.yaml").write_text(given.yaml())
    folder, root = tmp_path / "killed", Path(kdx.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", COMMAND, str(tmp_path / "recipe.yaml"), str(folder)]
    process = subprocess.Popen(command, env=environment)
    checkpoints = folder / "distilled" / "checkpoints"
    while not any(checkpoints.glob("step-00000080-*.pt")) and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "distilled" / "result.json").exists()
    resumed: list[int] = []

    class Watch:
        @hookimpl
        def kdx_configure(self, run):
            resumed.append(run.step)

    rest = Experiment(given, folder, [Watch()], report=False).run(resume=True)["stages"]["distilled"]
    assert resumed[0] >= 80
    assert resumed[0] % 40 == 0
    whole = Experiment(given, tmp_path / "whole", report=False).run()["stages"]["distilled"]
    assert rest["prequential"] == whole["prequential"]
    assert same(weights(folder, "distilled"), weights(tmp_path / "whole", "distilled"))


def test_a_stream_stage_of_many_passes_writes_a_checkpoint_after_as_many_steps_as_an_epoch_has(tmp_path) -> None:
    seen: set[str] = set()

    class Watch:
        @hookimpl
        def kdx_step_end(self, run, step):
            seen.update(path.name.rpartition("-")[0] for path in (run.folder / "checkpoints").glob("step-*.pt"))
            if step == 14:
                run.stop("for a test")

    train = {"steps": 1000, "batch_size": 100, "accumulate": 2}  # 1197 rows: 6 steps
    experiment = Experiment(check_recipe(RECIPE | {"train": train}), tmp_path / "run", [Watch()])
    (tmp_path / "run").mkdir()  # as a run does first
    experiment.runner.run(experiment.assembly.stages["alone"])
    assert seen == {"step-00000006", "step-00000012"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"batch_size": 16}}, "train.steps: a stream has no end, so give the number of steps"),
        (
            {
                "scheme": {"name": "offline"},
                "teacher": {"model": {"name": "mlp"}, "train": {"steps": 5}, "store": {"views": 1}},
            },
            "the views of a stream never come again",
        ),
    ],
)
def test_a_stream_recipe_that_makes_no_sense_is_refused(change, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_recipe(RECIPE | change)


def test_a_teacher_that_is_trained_first_needs_its_own_number_of_steps(tmp_path) -> None:
    recipe = check_recipe(RECIPE | {"scheme": {"name": "offline"}, "teacher": {"model": {"name": "mlp"}}})
    with pytest.raises(RecipeError, match=r"teacher\.train\.steps: a stream has no end"):
        kdx.run(recipe, folder=tmp_path / "run")
