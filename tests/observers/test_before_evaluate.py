"""The hook before an evaluation: what it changes is judged, selected, exported, and resumed to the bit."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

import kdx
from kdx.datasets import Digits, SampleStream, View
from kdx.errors import Interrupted, PluginError
from kdx.training import evaluate
from tests.loaders import Noisy
from tests.stopping import Stop

SLOW = 0.001
"""Momentum of statistics that stay far behind."""


def recalibrated(student, batches) -> None:
    """Sets the statistics of BatchNorm to the means over all batches, leaving the modes to kdx."""
    norms = [module for module in student.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    student.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        for batch in batches():
            student(batch.inputs)
    for norm in norms:
        norm.momentum = SLOW


class Recalibrates:
    def __init__(self) -> None:
        self.told = []

    @kdx.hookimpl
    def kdx_before_evaluate(self, run, name, student, batches):
        self.told.append((name, run.epoch, run.step))
        recalibrated(student, batches)
        torch.rand(7)  # draws of its own


def train(net, images, folder=None, *, observers=(), scheme=kdx.Supervised, **options):
    torch.manual_seed(0)
    loader = DataLoader(Noisy(images), 16, shuffle=True)
    model = net()
    model.norm.momentum = SLOW
    return kdx.fit(
        scheme(model),
        loader,
        epochs=3,
        evaluate=DataLoader(TensorDataset(*images), 32),
        optimizer=kdx.Ref("SGD", lr=0.1),
        seed=3,
        folder=folder,
        observers=observers,
        device="cpu",
        **options,
    )


def test_what_the_hook_changes_is_judged_selected_and_exported(net, images, tmp_path) -> None:
    hook = Recalibrates()
    run = train(net, images, tmp_path, observers=[hook], select="accuracy")
    assert hook.told == [("student", 0, 6), ("student", 1, 12), ("student", 2, 18), ("student", 3, 18)]
    student = run.scheme.students["student"]
    exported = load_file(tmp_path / "student.safetensors")
    assert exported["norm.running_mean"].equal(student.norm.running_mean)
    wanted = torch.cat([student.conv(Noisy(images)[row][0][None]) for row in range(96)]).mean((0, 2, 3))
    torch.testing.assert_close(exported["norm.running_mean"], wanted, atol=0.1, rtol=0)  # of noisy images
    found = evaluate(student, DataLoader(TensorDataset(*images), 32))
    assert found["accuracy"] == pytest.approx(run.best["student/accuracy"], abs=0.05)
    without = train(net, images, select="accuracy")
    assert without.best["student/accuracy"] < 0.6 < run.best["student/accuracy"]


def test_the_hook_changes_nothing_but_what_it_means_to(net, images) -> None:
    """Modes and random states are as without it."""

    class Draws:
        @kdx.hookimpl
        def kdx_before_evaluate(self, student, batches):
            student.eval()
            torch.rand(3)
            kept.append(next(iter(batches())))
            open_ended.append(batches())
            next(open_ended[-1])  # left where it is

    kept, open_ended = [], []
    with_hook, without = train(net, images, observers=[Draws()]), train(net, images)
    assert with_hook.history == without.history
    for name, value in without.scheme.state_dict().items():
        assert with_hook.scheme.state_dict()[name].equal(value), name
    before = torch.get_rng_state()
    with pytest.raises(StopIteration):
        next(open_ended[-1])  # ended with the hook
    assert torch.get_rng_state().equal(before)
    assert torch.equal(kept[0].targets, images[1][:16])  # in order, though the loader shuffles


@pytest.mark.parametrize("stop", [4, 6, 18])
def test_a_run_with_the_hook_resumes_to_the_same_end(net, images, tmp_path, stop) -> None:
    """In an epoch, before its evaluation, and before that of the last."""
    whole = train(net, images, tmp_path / "whole", observers=[Recalibrates()], select="accuracy")
    with pytest.raises(Interrupted):
        train(net, images, tmp_path / "broken", observers=[Recalibrates(), Stop(stop)], select="accuracy")
    rest = train(net, images, tmp_path / "broken", observers=[Recalibrates()], select="accuracy", resume=True)
    assert rest.history == whole.history
    for name, value in load_file(tmp_path / "whole/student.safetensors").items():
        assert load_file(tmp_path / "broken/student.safetensors")[name].equal(value), name


@pytest.mark.parametrize("error", [kdx.StopRun("enough"), RuntimeError("no printer")], ids=repr)
def test_a_run_that_ends_in_the_hook_goes_on_from_the_same_place(net, images, tmp_path, error) -> None:
    class Breaks:
        @kdx.hookimpl
        def kdx_before_evaluate(self, run):
            if run.step == 12:
                raise error

    whole = train(net, images, tmp_path / "whole")
    with pytest.raises((kdx.StopRun, PluginError), match=r"enough|failed in kdx_before_evaluate: RuntimeError"):
        train(net, images, tmp_path / "broken", observers=[Breaks()])
    rest = train(net, images, tmp_path / "broken", resume=True)
    assert rest.history == whole.history


class Told(kdx.Supervised):
    """A scheme that recalibrates its student by itself."""

    @kdx.hookimpl
    def kdx_before_evaluate(self, name, student, batches):
        order.append("scheme")
        recalibrated(student, batches)

    @kdx.hookimpl
    def kdx_step_end(self, step):
        order.append(step)


order: list[object] = []


def test_a_scheme_is_told_of_its_own_run_before_the_observers(net, images) -> None:
    class After:
        @kdx.hookimpl
        def kdx_before_evaluate(self):
            order.append("observer")

    order.clear()
    by_scheme = train(net, images, scheme=Told, observers=[After()])
    assert order[5:8] == [6, "scheme", "observer"]
    assert by_scheme.history == train(net, images, observers=[Recalibrates()]).history


def test_a_fault_in_a_scheme_s_hook_names_the_scheme(net, images) -> None:
    class Fails(kdx.Supervised):
        @kdx.hookimpl
        def kdx_before_evaluate(self):
            raise RuntimeError("no statistics")

    with pytest.raises(PluginError, match=r"'scheme Fails' of .*test_before_evaluate\.py failed in kdx_before_ev"):
        train(net, images, scheme=Fails)

    class Unmarked(kdx.Supervised):
        def kdx_before_evaluate(self):
            pass

    with pytest.raises(PluginError, match="scheme Unmarked has a method kdx_before_evaluate that is not marked"):
        train(net, images, scheme=Unmarked)

    class Misspelt(kdx.Supervised):
        @kdx.hookimpl
        def kdx_before_evaluat(self):
            pass

    with pytest.raises(PluginError, match="a run has no such hook; did you mean 'kdx_before_evaluate'"):
        train(net, images, scheme=Misspelt)


class First:
    """Keeps the first rows that the hook is given."""

    def __init__(self) -> None:
        self.targets = []

    @kdx.hookimpl
    def kdx_before_evaluate(self, batches):
        self.targets.append(next(iter(batches())).targets)


def test_the_rows_of_a_stream_come_in_the_order_of_its_data_set_and_the_stream_keeps_its_place() -> None:
    def run(*observers):
        torch.manual_seed(0)
        digits = Digits("train")
        stream = DataLoader(SampleStream(View(digits)), 8)
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        return kdx.fit(kdx.Supervised(net), stream, steps=6, observers=observers, device="cpu"), digits.targets

    first = First()
    run_, targets = run(first)
    assert run_.history == run()[0].history
    assert first.targets[0].tolist() == [int(target) for target in targets[:8]]


def test_batches_that_run_only_once_are_left_to_the_run(net, images) -> None:
    batches = [(images[0][:16], images[1][:16]), (images[0][16:32], images[1][16:32])]
    first = First()
    kdx.fit(kdx.Supervised(net()), batches, observers=[first], device="cpu")
    assert first.targets[0].equal(images[1][:16])
    with pytest.raises(PluginError, match="an iterator, which runs only once, so a hook cannot look"):
        kdx.fit(kdx.Supervised(net()), iter(batches), steps=1, observers=[First()], device="cpu")
