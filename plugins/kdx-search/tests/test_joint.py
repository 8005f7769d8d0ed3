"""A search end to end: trials, limits, pruning, resuming, several processes, the chosen student."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from kdx_search.compare import compare, table
from kdx_search.joint import search
from kdx_search.pricing import Prices
from kdx_search.search_recipe import load_search
from safetensors.torch import load_file

from kdx import hookimpl
from kdx.errors import KdxError, RecipeError, RunExistsError
from kdx.experiment import ExperimentData, read_summary
from kdx.teachers import Stored

pytestmark = pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning")


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """A folder for the searches of this module: they share their teacher, beside it."""
    return tmp_path_factory.mktemp("searches")


def same(*searches: Path) -> bool:
    """Whether the chosen students have the same weights, to the bit."""
    one, other = (load_file(place / "chosen" / "distilled" / "student.safetensors") for place in searches)
    return one.keys() == other.keys() and all(value.equal(other[name]) for name, value in one.items())


def test_the_best_trial_is_distilled_to_the_end_and_the_test_rows_are_read_for_it_alone(
    tiny, kept: Path, monkeypatch
) -> None:
    tested = []

    def evaluation(self, dataset, given=ExperimentData.evaluation):
        if dataset is self.test:
            tested.append(self)
        return given(self, dataset)

    monkeypatch.setattr(ExperimentData, "evaluation", evaluation)
    told: list[str] = []
    summary = search({**tiny(), "controls": ["alone"]}, folder=kept / "one", notify=told.append)
    assert [each["state"] for each in summary["trials"]] == ["complete"] * 3
    best = max(summary["trials"], key=lambda each: (each["quality"], -each["cost"]))
    assert summary["chosen"] == best["number"]
    assert len(tested) == len(summary["run"]["stages"]) == 3  # teacher, alone, distilled of the chosen run
    assert len({id(each) for each in tested}) == 1
    assert summary["run"] == read_summary(kept / "one" / "chosen")
    student = yaml.safe_load((kept / "one" / "chosen" / "recipe.yaml").read_text())["student"]["model"]
    assert student["hidden"][0] == best["values"]["student.model.hidden.0"]
    assert summary["run"]["stages"]["distilled"]["flops"] == best["cost"]
    assert summary["run"]["stages"]["distilled"]["steps"] == 20  # two epochs, and trials have one
    assert not list((kept / "one" / "trials").glob("[0-9]*"))
    assert (kept / "one" / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert summary["compute"]["steps"] == 3 * 10  # of the trials; the teacher is trained once for all of them
    assert sum("trial" in line for line in told) >= 4
    with pytest.raises(RunExistsError, match="--resume goes on with it or takes part"):
        search(tiny(), folder=kept / "one")
    again = search({**tiny(), "controls": ["alone"]}, folder=kept / "one", resume=True)
    assert again == summary


def test_a_search_in_two_parts_is_the_one_in_one_part(tiny, kept: Path) -> None:
    whole = search(tiny(trials=4, prune=False), folder=kept / "whole", report=False)
    first = search(tiny(trials=2, prune=False), folder=kept / "parts", report=False)
    (kept / "parts" / "search.json").unlink()  # as if it had been killed while the chosen student was distilled
    second = search(tiny(trials=4, prune=False), folder=kept / "parts", resume=True, report=False)
    assert first["trials"] == whole["trials"][:2]
    assert second["trials"] == whole["trials"]
    assert second["chosen"] == whole["chosen"]
    assert same(kept / "whole", kept / "parts")


def test_a_limit_is_kept_before_anything_is_trained(tiny, kept: Path) -> None:
    begun = []

    class Begun:
        @hookimpl
        def kdx_configure(self, run):
            begun.append(sum(parameter.numel() for parameter in next(iter(run.scheme.students.values())).parameters()))

    summary = search(tiny(max_params="1k"), folder=kept / "limit", observers=[Begun()], report=False)
    assert summary["refused"] > 0
    assert begun
    assert max(begun) <= 1000
    assert max(each["cost"] for each in summary["trials"]) < 2000
    assert summary["run"]["stages"]["distilled"]["parameters"] <= 1000


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"max_flops": 100}, r"max_flops: no student .* 100 operations.* the nearest .* 736 .*hidden\.0=4"),
        ({"max_params": "1%"}, r"max_params: .* costs 21 parameters or less; .* 390 parameters, with .*hidden\.0=4"),
        ({"max_latency": "0.000001ms"}, "max_latency: no student of the space costs 1e-06 ms or less"),
    ],
)
def test_a_limit_that_no_student_meets_is_said_with_the_nearest(tiny, tmp_path: Path, limit, message) -> None:
    with pytest.raises(RecipeError, match=message):
        search(tiny(**limit), folder=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_students_derived_from_the_teacher_are_priced_before_it_is_trained(tiny) -> None:
    space = {"student.model": {"name": "derived", "how": "width", "params": {"low": 0.2, "high": 0.9}}}
    prices = Prices(load_search(tiny(space, cost="params", max_params=0.5)))
    small, large = ({"student.model.params": share} for share in (0.2, 0.9))
    teacher = 64 * 24 + 24 + 24 * 16 + 16 + 16 * 10 + 10
    costs = [prices.of(small), prices.of(large)]
    assert costs[0]["params"] <= 0.2 * teacher < 0.5 * teacher < costs[1]["params"] <= 0.9 * teacher
    assert prices.refusal(small, costs[0]) is None
    assert f"search.max_params allows {0.5 * teacher:,.0f} parameters" in prices.refusal(large, costs[1])


def test_a_trial_that_falls_behind_is_ended_and_never_chosen(tiny, kept: Path) -> None:
    space = {
        "student.model.hidden": [{"low": 30, "high": 34}, 8],
        "train.optimizer.lr": {"choices": {"good": 0.01, "none": 1e-9}},
    }
    recipe = tiny(space, trials=12, epochs=3)
    recipe["train"]["optimizer"] = {"name": "AdamW", "lr": 0.01}
    summary = search(recipe, folder=kept / "behind", report=False)
    ended = [each for each in summary["trials"] if each["state"] == "pruned"]
    assert "none" in {each["values"]["train.optimizer.lr"] for each in ended}
    for each in ended:
        assert "behind the median" in each["reason"]
        assert 1 <= len(each["quality_by_epoch"]) < 3
    chosen = next(each for each in summary["trials"] if each["number"] == summary["chosen"])
    assert chosen["values"]["train.optimizer.lr"] == "good"


def test_a_trial_that_cannot_run_is_one_that_failed(tiny, kept: Path) -> None:
    layers = {"name": "hint", "student": {"choices": ["hidden1", "hidden9"]}, "teacher": "hidden1"}
    space = {"student.model.hidden": [{"low": 4, "high": 32}, 8], "knowledge.hint": layers}
    summary = search(tiny(space, trials=6), folder=kept / "failed", report=False)
    states = {each["values"]["knowledge.hint.student"]: each["state"] for each in summary["trials"]}
    assert states == {"hidden1": "complete", "hidden9": "fail"}
    space["knowledge.hint"]["student"]["choices"] = ["hidden8", "hidden9"]
    with pytest.raises(
        KdxError, match=r"3 trials of the search failed and none ended well; the last one: .*hidden[89]"
    ):
        search(tiny(space, trials=6), folder=kept / "all-failed", report=False)


def test_points_that_were_tried_are_not_trained_again(tiny, kept: Path) -> None:
    space = {"knowledge.kd.temperature": {"choices": [1.0, 4.0]}}
    told: list[str] = []
    summary = search(tiny(space, trials=5), folder=kept / "few", report=False, notify=told.append)
    assert len(summary["trials"]) == 2
    assert summary["repeated"] > 0
    assert any("or are these again" in line for line in told)


def test_the_cheapest_within_the_tolerance_is_chosen(tiny, kept: Path) -> None:
    summary = search(tiny(tolerance=1.0), folder=kept / "cheap", report=False)
    assert summary["chosen"] == min(summary["trials"], key=lambda each: each["cost"])["number"]


SCRIPT = """
import json, sys
from pathlib import Path
from kdx import hookimpl
from kdx.teachers import Stored
from kdx_search import search

class Wait:
    @hookimpl
    def kdx_step_end(self, run, step):
        if run.folder.name == "distilled" and step == 15 and run.folder.parent.name == "0001":
            Path(sys.argv[2], "here").touch()
            import time
            time.sleep(60)

search(json.loads(Path(sys.argv[1]).read_text()), folder=sys.argv[2], report=False, observers=[Wait()])
"""


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on_with_the_trial_that_it_was_at(tiny, kept: Path) -> None:
    recipe = tiny(epochs=2, prune=False)
    whole = search(recipe, folder=kept / "unbroken", report=False)
    (kept / "recipe.json").write_text(json.dumps(recipe))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    place = kept / "killed"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, kept / "recipe.json", place], env=environment)
    while not (place / "here").exists():
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    told: list[str] = []
    summary = search(recipe, folder=place, resume=True, report=False, notify=told.append)
    assert "trial 1: goes on, for the process that began it is gone" in told
    keys = ("state", "values", "quality", "cost", "quality_by_epoch")
    assert [[each[key] for key in keys] for each in summary["trials"]] == [
        [each[key] for key in keys] for each in whole["trials"]
    ]
    assert same(kept / "unbroken", kept / "killed")


@pytest.mark.slow
def test_two_processes_share_the_trials(tiny, kept: Path) -> None:
    summary = search(tiny(trials=6), folder=kept / "shared", processes=2, report=False)
    assert len(summary["trials"]) == 6
    assert {each["state"] for each in summary["trials"]} <= {"complete", "pruned"}
    assert (kept / "shared" / "chosen" / "summary.json").exists()


def test_a_folder_that_holds_something_else_is_left_alone(tiny, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RunExistsError, match="holds no search"):
        search(tiny(), folder=tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["letter.txt"]


def test_trials_share_one_store_of_the_teachers_outputs(tiny, kept: Path) -> None:
    ran, store = [], kept / "stored" / "store"
    recipe = tiny()
    recipe["teacher"]["store"] = {"views": 1, "dtype": "fp32"}

    class Runs:
        @hookimpl
        def kdx_configure(self, run):
            ran.append([each.store.folder for each in run.scheme.modules() if isinstance(each, Stored)])

    stored = search(recipe, folder=kept / "stored", observers=[Runs()], report=False)
    assert ran == [[store]] * 4  # three trials and the chosen student
    plain = search(tiny(), folder=kept / "not-stored", report=False)
    assert [each["values"] for each in stored["trials"]] == [each["values"] for each in plain["trials"]]
    for one, other in zip(stored["trials"], plain["trials"], strict=True):
        assert one["quality"] == pytest.approx(other["quality"], abs=0.02)  # a row or two of a hundred


def test_a_search_ends_at_its_budget_of_operations(tiny, kept: Path) -> None:
    whole = search(tiny(trials=4), folder=kept / "rich", report=False)
    spent, rows = whole["compute"]["flops"], whole["compute"]["backward_samples"] / 4
    assert spent > 3 * rows * sum(each["cost"] for each in whole["trials"])  # evaluations are counted too
    assert whole["compute"]["trials"] == 4
    poor = search(tiny(trials=4, compute=spent * 0.6), folder=kept / "poor", report=False)
    assert 1 < len(poor["trials"]) < 4
    assert poor["trials"] == whole["trials"][: len(poor["trials"])]


@pytest.mark.slow
def test_a_search_is_compared_with_its_controls_at_equal_compute(tiny, kept: Path) -> None:
    recipe = tiny(trials=2)
    recipe["train"]["epochs"] = 1
    rows = compare(recipe, [0, 1], kept / "compared")
    by = {(row["arm"], row["seed"]): row for row in rows}
    assert len(by) == 8
    for seed in (0, 1):
        found = by["search", seed]
        assert by["random", seed]["trials"] >= 2
        assert by["width", seed]["flops"] <= found["flops"]
        assert 0.5 * found["compute"] < by["width, longer", seed]["compute"] < 1.5 * found["compute"]
    lines = table(rows).splitlines()
    assert len(lines) == 2 + 4
    assert all("±" in line for line in lines[2:])
    assert compare(recipe, [0, 1], kept / "compared") == rows  # read, not run again


def test_a_student_whose_cost_is_known_late_is_refused_before_its_first_step(tiny, kept: Path, monkeypatch) -> None:
    steps = []

    class Steps:
        @hookimpl
        def kdx_step_end(self, run):
            if run.stage.name == "distilled":
                steps.append(sum(each.numel() for each in next(iter(run.scheme.students.values())).parameters()))

    monkeypatch.setattr(Prices, "of", lambda self, values: None)
    summary = search(tiny(max_params="1k"), folder=kept / "late", observers=[Steps()], report=False)
    assert summary["refused"] > 0
    assert steps
    assert max(steps) <= 1000
    assert all(each["cost"] < 2000 for each in summary["trials"])


@pytest.mark.slow
def test_structure_transfer_scheme_and_assistant_are_searched_together(tiny, kept: Path) -> None:
    space = {
        "student.model": {"name": "derived", "how": "width", "params": {"low": 0.3, "high": 0.6}},
        "assistant": {
            "choices": {
                "none": None,
                "hint": {"name": "hint-then-distil", "student_layer": "hidden1", "teacher_layer": "hidden1"},
            }
        },
        "knowledge.kd.weight": {"choices": {"fixed": 0.9, "balanced": {"kind": "balanced", "ratio": 1.0, "every": 5}}},
    }
    summary = search(tiny(space, trials=4, cost="latency"), folder=kept / "together", report=False)
    states = {each["values"]["assistant"]: each["state"] for each in summary["trials"]}
    assert states == {"none": "complete", "hint": "complete"}
    assert all(each["cost"] > 0 for each in summary["trials"])
    assert summary["run"]["stages"]["distilled"]["model"] == "derived"
