"""Two runs at once: one folder has one writer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kdx
from kdx.errors import InUseError, RunExistsError
from kdx.experiment.experiment import Experiment
from kdx.experiment.store_command import cache_teacher
from kdx.hookspecs import hookimpl
from kdx.lock import sole_writer
from tests.experiment.tiny import TINY, recipe, same, weights
from tests.ranks import on_two_ranks

pytestmark = [
    pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning"),
    pytest.mark.filterwarnings("ignore::kdx.assistants.gap.GapWarning"),
]


class During:
    """Does something once, amid the training."""

    def __init__(self, act) -> None:
        self.act, self.found = act, []

    @hookimpl
    def kdx_step_end(self, step) -> None:
        if not self.found:
            self.found.append(None)
            self.found[0] = self.act()


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"force": True}], ids=["new", "resume", "force"])
def test_a_second_run_in_a_folder_is_refused_and_the_first_ends_undisturbed(how: dict, run, tmp_path: Path) -> None:
    run("alone")

    def second() -> str:
        with pytest.raises(InUseError) as refused:
            Experiment(recipe(), tmp_path / "both", report=False).run(**how)
        return str(refused.value)

    during = During(second)
    Experiment(recipe(teacher={**TINY["teacher"], "reuse": False}), tmp_path / "both", [during], report=False).run()
    assert f"both is being written by process {os.getpid()} on " in during.found[0]
    assert {path.name for path in tmp_path.iterdir()} == {".teachers", "alone", "both"}
    for stage in ("teacher", "alone", "distilled"):
        rows = [(tmp_path / name / stage / "metrics.jsonl").read_text() for name in ("alone", "both")]
        assert rows[0] == rows[1]
        assert same(weights(tmp_path / "alone", stage), weights(tmp_path / "both", stage))
    assert not list((tmp_path / "both").rglob(".lock"))


@pytest.mark.slow
def test_of_two_commands_that_start_at_once_one_runs(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe().yaml())
    command = [sys.executable, "-m", "kdx", "run", str(tmp_path / "recipe.yaml"), "--folder", str(tmp_path / "run")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ended = [(process, process.communicate(timeout=120)[1]) for process in started]
    assert sorted(process.returncode for process, _ in ended) == [0, 1]
    winner, said = next(
        (p.pid, s) for (p, _), (q, s) in (ended, ended[::-1]) if p.returncode == 0 and q.returncode == 1
    )
    assert f"is being written by process {winner} on" in said
    assert len(said.splitlines()) == 1
    assert (tmp_path / "run" / "summary.json").exists()


def test_force_keeps_the_new_folder_too(run, tmp_path: Path) -> None:
    run("one")

    def second() -> str:
        with pytest.raises(InUseError):
            Experiment(recipe(), tmp_path / "one", report=False).run(resume=True)
        return "refused"

    during = During(second)
    Experiment(recipe(), tmp_path / "one", [during], report=False).run(force=True)
    assert during.found == ["refused"]
    assert not list(tmp_path.rglob(".lock"))
    assert (tmp_path / "one.old-1" / "summary.json").exists()


def test_a_finished_run_is_read_while_another_writes_and_what_is_no_run_is_left_as_it_was(run, tmp_path: Path) -> None:
    summary = run("one")
    with sole_writer(tmp_path / "one"):
        assert Experiment(recipe(), tmp_path / "one").run(resume=True) == json.loads(json.dumps(summary))
        with pytest.raises(RunExistsError, match="holds a run already"):
            Experiment(recipe(), tmp_path / "one").run()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").touch()
    with pytest.raises(RunExistsError, match="holds no run"):
        Experiment(recipe(), tmp_path / "other").run()
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["mine"]


def test_a_run_killed_at_its_start_leaves_a_lock_that_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / ".lock").write_text("")
    assert "stages" in Experiment(recipe(), tmp_path / "one", report=False).run()


def test_fit_has_its_folder_for_itself(tmp_path: Path) -> None:
    data = [(torch.randn(8, 3), torch.randint(2, (8,))) for _ in range(2)]

    def fit(*observers: object) -> kdx.Run:
        scheme = kdx.Supervised(torch.nn.Linear(3, 2))
        return kdx.fit(scheme, data, device="cpu", folder=str(tmp_path / "run"), resume=True, observers=observers)

    def second() -> str:
        with pytest.raises(InUseError, match="is being written by process"):
            fit()
        return "refused"

    during = During(second)
    fit(during)
    assert during.found == ["refused"]
    log = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(log) == len(set(log)) > 0
    fit()
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_second_command_that_stores_is_refused_while_the_first_trains(tmp_path: Path) -> None:
    def store(*observers: object) -> None:
        cache_teacher(recipe(), tmp_path / "store", teachers=tmp_path / ".teachers", observers=observers, views=1)

    def second() -> str:
        with pytest.raises(InUseError, match="store is being written by process"):
            store()
        return "refused"

    during = During(second)
    store(during)
    assert during.found == ["refused"]
    assert not list((tmp_path / "store").rglob("*.lock"))


RANKS = """
import json, sys
from pathlib import Path
import torch.distributed as dist
from kdx.experiment.experiment import Experiment
from tests.experiment.tiny import recipe
dist.init_process_group("gloo", store=dist.FileStore(sys.argv[3], 2), rank=int(sys.argv[1]), world_size=2)
runs = [Experiment(recipe(device="cpu"), Path(sys.argv[2]), report=False).run(resume=again) for again in (False, True)]
assert runs[0] == runs[1]
print(json.dumps({name: stage["test"]["accuracy"] for name, stage in runs[0]["stages"].items()}))
"""


@pytest.mark.slow
def test_the_processes_of_one_run_share_its_folder_and_one_of_them_writes_the_log(tmp_path: Path) -> None:
    found = on_two_ranks(RANKS, str(tmp_path / "run"), str(tmp_path / "store"))
    assert found[0] == found[1]
    log = (tmp_path / "run" / "distilled" / "metrics.jsonl").read_text().splitlines()
    assert len(log) == len(set(log))
    assert not list((tmp_path / "run").rglob(".lock"))
