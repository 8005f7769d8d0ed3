"""Observers: what they are told, what they write, what happens when they fail."""

from __future__ import annotations

import json
import types

import pytest
import torch
import transformers

import kdx
from kdx.errors import PluginError
from kdx.hookspecs import hookimpl
from kdx.observers.metrics_log import read_metrics
from kdx.training.checkpoint import latest_checkpoint


def distil(net, seed: int = 0) -> kdx.Offline:
    torch.manual_seed(seed)
    return kdx.Offline(net(4), net(6), knowledge={"hint": (1.0, kdx.Hint(student="conv", teacher="conv"))})


def test_metrics_are_written_as_json_lines_and_events(net, loader, tmp_path) -> None:
    kdx.fit(distil(net), loader, epochs=2, evaluate=loader, folder=tmp_path, log_every=2)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = [row for row in rows if "loss" in row]
    assert [row["step"] for row in logged] == [2, 4, 6, 8, 10, 12]
    for row in logged:
        assert row["loss"] == pytest.approx(row["term/task"] + row["term/hint"], rel=1e-5)
    assert [row["epoch"] for row in rows if "eval/student/accuracy" in row] == [1, 2]
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_observers_are_told_in_order_and_can_stop_the_run(net, loader) -> None:
    told = []

    class Early:
        @hookimpl
        def kdx_configure(self, run):
            told.append("configure")

        @hookimpl
        def kdx_step_end(self, run, step, losses):
            told.append(f"first {step}")
            assert not losses.total.requires_grad

        @hookimpl
        def kdx_epoch_end(self, run, row):
            told.append(f"epoch {sorted(row)}")
            run.stop("enough")

        @hookimpl
        def kdx_run_end(self, run):
            told.append("end")

    class Second:
        @hookimpl
        def kdx_step_end(self, step):
            told.append(f"second {step}")

    run = kdx.fit(kdx.Supervised(net()), loader, epochs=5, evaluate=loader, observers=[Early(), Second()])
    assert run.stopped == "enough"
    assert run.epoch == 1
    assert told[:3] == ["configure", "first 1", "second 1"]
    assert told[-2:] == ["epoch ['epoch', 'step', 'student/accuracy', 'train/loss', 'train/task']", "end"]


def test_an_observer_that_raises_is_named_and_loses_nothing(net, loader, tmp_path) -> None:
    class Clumsy:
        @hookimpl
        def kdx_step_end(self, step):
            if step == 4:
                raise OSError("no space left on device")

    scheme = kdx.Supervised(net())
    with pytest.raises(
        PluginError,
        match=r"'Clumsy \(number 1\)' of .*test_dispatch\.py failed in kdx_step_end: OSError: no space left",
    ):
        kdx.fit(scheme, loader, epochs=2, folder=tmp_path, observers=[Clumsy()])
    assert latest_checkpoint(tmp_path / "checkpoints").name.startswith("step-00000004-")
    assert kdx.fit(scheme, loader, epochs=2, folder=tmp_path, resume=True).step == 12

    class Wrong:
        @hookimpl
        def kdx_step_end(self, colour):
            pass

    with pytest.raises(PluginError, match=r"(?s)'Wrong \(number 1\)' cannot be used.*colour"):
        kdx.fit(scheme, loader, observers=[Wrong()])


def test_an_observer_that_raises_keeps_nothing_from_the_others(net, loader, tmp_path) -> None:
    told: list[str] = []

    class Clumsy:
        @hookimpl
        def kdx_epoch_end(self):
            raise RuntimeError("no printer")

    class Other:
        @hookimpl
        def kdx_epoch_end(self, run):
            told.append(f"epoch {run.epoch}")

    class Breaks:
        @hookimpl
        def kdx_epoch_end(self):
            raise RuntimeError("no paper")

    def run(folder, *observers, **options):
        torch.manual_seed(0)
        return kdx.fit(kdx.Supervised(net()), loader, evaluate=loader, folder=folder, observers=observers, **options)

    with pytest.raises(PluginError, match="no printer") as caught:
        run(tmp_path / "broken", Clumsy(), Other(), Breaks())
    assert told == ["epoch 1"]
    assert any("no paper" in note for note in caught.value.__notes__)
    run(tmp_path / "broken", resume=True)
    run(tmp_path / "unbroken")
    assert read_metrics(tmp_path / "broken/metrics.jsonl") == read_metrics(tmp_path / "unbroken/metrics.jsonl")


def test_an_error_at_the_end_of_a_run_is_raised_within_an_except_clause_too(net, loader) -> None:
    class Clumsy:
        @hookimpl
        def kdx_run_end(self):
            raise RuntimeError("no printer")

    try:
        raise KeyError("something else, handled here")
    except KeyError:
        with pytest.raises(PluginError, match="no printer"):
            kdx.fit(kdx.Supervised(net()), loader, observers=[Clumsy()])


class Unmarked:
    def kdx_epoch_end(self, run, row) -> None:
        pass


class Watches:
    @hookimpl
    def kdx_epoch_end(self, run, row) -> None:
        pass


class Keras:
    def on_epoch_end(self, epoch, logs=None) -> None:
        pass


class Provides:
    @hookimpl
    def kdx_knowledge(self):
        return []


@pytest.mark.parametrize(
    ("observers", "message"),
    [
        ([print], r"number 1, print, is no observer: an observer is an object with at least one of the methods"),
        ([lambda run: None], r"number 1, <lambda>, is no observer"),
        ([Watches(), Watches], r"number 2, Watches, is a class; give an object of it, Watches\(...\)"),
        ([kdx.observers.EarlyStopping], r"is a class; give an object of it, EarlyStopping\(...\)"),
        ([Unmarked()], r"has a method kdx_epoch_end that is not marked; write @kdx.hookimpl above it"),
        ([Unmarked], r"has a method kdx_epoch_end that is not marked"),
        ([Keras()], r"its on_epoch_end belongs to another framework and is never called here"),
        ([transformers.EarlyStoppingCallback()], r"its on_\w+ belongs to another framework"),
        ([Provides()], r"is no observer"),
        (["progress"], r"number 1, 'progress', is no observer"),
        ([None], r"number 1, None, is no observer"),
        ("progress", r"expected a list of objects, got 'progress'; write observers=\[...\]"),
        (Watches(), r"expected a list of objects, got .*Watches"),
    ],
)
def test_what_can_be_told_nothing_is_refused_at_the_call(net, loader, tmp_path, observers, message) -> None:
    with pytest.raises(TypeError, match=message):
        kdx.fit(kdx.Supervised(net()), loader, observers=observers, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(TypeError, match=message):
        kdx.run("fashion-offline", folder=tmp_path / "run", observers=observers)
    assert not (tmp_path / "run").exists()


def test_an_observer_given_twice_is_named(net, loader) -> None:
    watches = Watches()
    with pytest.raises(PluginError, match=r"'Watches \(number 1\)' cannot be used: it was given twice"):
        kdx.fit(kdx.Supervised(net()), loader, observers=[watches, watches])


def test_a_module_may_observe(net, loader) -> None:
    module, rows = types.ModuleType("mine"), []
    module.kdx_epoch_end = hookimpl(lambda run, row: rows.append(row))
    run = kdx.fit(kdx.Supervised(net()), loader, observers=[module])
    assert rows == run.history


class Prunes:
    """Ends the run in one hook, as a search ends a trial that is behind the others."""

    def __init__(self, event: str, at: int = 0) -> None:
        self.event, self.at, self.told = event, at, []

    def _stop(self, event: str, count: int = 0) -> None:
        self.told.append(event)
        if event == self.event and count == self.at:
            try:
                raise LookupError("pruned")
            except LookupError as error:
                raise kdx.StopRun("behind the others") from error

    @hookimpl
    def kdx_configure(self, run):
        self._stop("kdx_configure")

    @hookimpl
    def kdx_step_end(self, run, step):
        self._stop("kdx_step_end", step)

    @hookimpl
    def kdx_epoch_end(self, run):
        self._stop("kdx_epoch_end", run.epoch)

    @hookimpl
    def kdx_run_end(self, run):
        self._stop("kdx_run_end")


@pytest.mark.parametrize(
    ("event", "at", "step", "epoch"),
    [("kdx_configure", 0, 0, 0), ("kdx_step_end", 8, 8, 1), ("kdx_epoch_end", 1, 6, 1), ("kdx_run_end", 0, 18, 3)],
)
def test_a_run_is_ended_by_an_exception_that_is_meant_for_it(net, loader, tmp_path, event, at, step, epoch) -> None:
    def run(folder, *observers, **options):
        torch.manual_seed(0)
        return kdx.fit(
            kdx.Supervised(net()), loader, epochs=3, evaluate=loader, folder=folder, observers=observers, **options
        )

    prunes, other = Prunes(event, at), Prunes("")
    with pytest.raises(kdx.StopRun, match=r"^behind the others$") as caught:
        run(tmp_path / "stopped", prunes, other)
    assert isinstance(caught.value.__cause__, LookupError)
    assert (caught.value.step, caught.value.epoch) == (step, epoch)
    assert prunes.told == other.told  # the others were told of the same, and everyone of the end
    assert prunes.told[-1] == "kdx_run_end"
    last = latest_checkpoint(tmp_path / "stopped/checkpoints")
    assert (last is None) if step == 0 else last.name.startswith(f"step-{step:08d}-")
    resumed, whole = run(tmp_path / "stopped", resume=True), run(tmp_path / "whole")
    assert resumed.history == whole.history
    assert resumed.stopped is None


def test_a_failure_of_one_observer_goes_before_the_end_that_another_asks_for(net, loader) -> None:
    class Clumsy:
        @hookimpl
        def kdx_epoch_end(self):
            raise RuntimeError("no printer")

    with pytest.raises(PluginError, match="no printer") as caught:
        kdx.fit(kdx.Supervised(net()), loader, observers=[Prunes("kdx_epoch_end", 1), Clumsy()])
    assert "behind the others" in caught.value.__notes__
