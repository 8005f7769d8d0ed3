"""A tracker of Accelerate's gets losses and metrics; observers of plugins: order, failures, wrappers."""

from __future__ import annotations

import math
import types

import pytest
from accelerate.tracking import GeneralTracker, on_main_process

import kdx
from kdx.errors import PluginError
from kdx.hookspecs import hookimpl
from kdx.observers.tracker import Tracker
from kdx.registry import Plugins
from kdx.training.checkpoint import latest_checkpoint


class Memory(GeneralTracker):
    """A tracker that keeps what it is told."""

    name = "memory"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.config, self.ended = [], None, 0

    @property
    def tracker(self):
        return self

    @on_main_process
    def store_init_configuration(self, values) -> None:
        self.config = values

    @on_main_process
    def log(self, values, step=None, **options) -> None:
        self.rows.append((step, values))

    @on_main_process
    def finish(self) -> None:
        self.ended += 1


def test_a_tracker_of_accelerate_gets_losses_and_metrics(net, loader) -> None:
    memory = Memory()
    observer = Tracker(memory, project="mine", config={"seed": 1})
    kdx.fit(kdx.Supervised(net()), loader, epochs=2, evaluate=loader, log_every=3, observers=[observer], device="cpu")
    assert memory.config == {"seed": 1}
    losses = [(step, row) for step, row in memory.rows if "loss" in row]
    assert [step for step, _ in losses] == [3, 6, 9, 12]
    assert all(row["loss"] == row["term/task"] and row["lr"] >= 0 and math.isfinite(row["loss"]) for _, row in losses)
    metrics = [(step, row["epoch"], row["eval/student/accuracy"]) for step, row in memory.rows if "epoch" in row]
    assert [row[:2] for row in metrics] == [(6, 1), (12, 2)]
    assert memory.ended == 1


def test_tensorboard_through_accelerate_writes_into_the_run_folder(net, loader, tmp_path) -> None:
    observers = [Tracker("tensorboard", project="tracked")]
    kdx.fit(kdx.Supervised(net()), loader, steps=2, folder=tmp_path, observers=observers, device="cpu")
    assert list((tmp_path / "tracked").glob("events.*"))


def test_a_tracker_that_is_not_installed_is_named(net, loader) -> None:
    with pytest.raises(PluginError, match=r"observer 'Tracker.*ValueError"):
        kdx.fit(kdx.Supervised(net()), loader, observers=[Tracker("no-such-tracker")], device="cpu")


def watching(monkeypatch, told: list[str], **failing: str) -> None:
    """Two installed plugins that observe every run, and fail where they are asked to."""
    plugins = Plugins(entries=(), blocked=(), trace=False)
    for name in ("zeta", "alpha"):
        module = types.ModuleType(name)

        def tell(event: str, name: str = name):
            def hook(run):
                told.append(f"{name} {event}")
                if failing.get(name) == event:
                    raise RuntimeError("no space left")

            return hookimpl(hook, specname=f"kdx_{event}")

        for event in ("configure", "step_end", "run_end"):
            setattr(module, f"kdx_{event}", tell(event))
        plugins.register(module, name)
    monkeypatch.setattr("kdx.observers.dispatch.default_plugins", lambda: plugins)


class Given:
    def __init__(self, told: list[str]) -> None:
        self.told = told

    @hookimpl
    def kdx_run_end(self, run) -> None:
        self.told.append("given run_end")

    @hookimpl
    def kdx_step_end(self, run) -> None:
        self.told.append("given step_end")


def test_plugins_observe_every_run_in_the_order_of_their_names_before_what_is_given(net, loader, monkeypatch) -> None:
    told: list[str] = []
    watching(monkeypatch, told)
    kdx.fit(kdx.Supervised(net()), loader, steps=1, observers=[Given(told)], device="cpu")
    assert told == [
        *("alpha configure", "zeta configure", "alpha step_end", "zeta step_end", "given step_end"),
        *("alpha run_end", "zeta run_end", "given run_end"),
    ]


@pytest.mark.parametrize(("event", "step"), [("configure", 0), ("step_end", 1)])
def test_a_plugin_that_raises_is_named_and_the_checkpoint_is_there(net, loader, tmp_path, monkeypatch, event, step):
    told: list[str] = []
    watching(monkeypatch, told, zeta=event)
    with pytest.raises(PluginError, match=f"observer 'zeta' failed in kdx_{event}: RuntimeError: no space left"):
        kdx.fit(kdx.Supervised(net()), loader, epochs=2, folder=tmp_path, observers=[Given(told)], device="cpu")
    assert told[-3:] == ["alpha run_end", "zeta run_end", "given run_end"]
    assert (latest_checkpoint(tmp_path / "checkpoints") is not None) == (step > 0)  # of no step there is none to keep
    monkeypatch.undo()
    assert kdx.fit(kdx.Supervised(net()), loader, epochs=2, folder=tmp_path, resume=True, device="cpu").step == 12


def test_an_error_at_the_end_is_raised_after_everyone_was_told_and_the_student_exported(
    net, loader, tmp_path, monkeypatch
) -> None:
    told: list[str] = []
    watching(monkeypatch, told, alpha="run_end")
    with pytest.raises(PluginError, match="observer 'alpha' failed in kdx_run_end"):
        kdx.fit(kdx.Supervised(net()), loader, folder=tmp_path, observers=[Given(told)], device="cpu")
    assert told[-3:] == ["alpha run_end", "zeta run_end", "given run_end"]
    assert (tmp_path / "student.safetensors").exists()


def test_an_error_at_the_end_does_not_hide_what_ended_the_run(net, loader, monkeypatch) -> None:
    watching(monkeypatch, [], alpha="run_end", zeta="step_end")
    with pytest.raises(PluginError, match="observer 'zeta' failed in kdx_step_end") as caught:
        kdx.fit(kdx.Supervised(net()), loader, device="cpu")
    assert caught.value.__notes__ == ["observer 'alpha' failed in kdx_run_end: RuntimeError: no space left"]


def test_a_wrapper_is_refused(net, loader) -> None:
    class Wraps:
        @hookimpl(wrapper=True)
        def kdx_run_end(self, run):
            return (yield)

    with pytest.raises(PluginError, match=r"observer 'Wraps \(number 1\)' is a wrapper in kdx_run_end"):
        kdx.fit(kdx.Supervised(net()), loader, observers=[Wraps()], device="cpu")
