"""Schemes that change in the course of a run, on streams: passes over the data are epochs."""

from __future__ import annotations

import os
import signal
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import kdx
from kdx.datasets import Digits, SampleStream, View
from kdx.errors import Interrupted
from kdx.hookspecs import hookimpl
from kdx.models import ConvNet
from tests.schemes.test_self_schemes import same

ROWS, BATCH, STEPS = 40, 12, 11  # 3 1/3 steps a pass: passes begin at steps 0, 4, 7 and 10
SCHEMES: dict[str, dict[str, Any]] = {
    "ps-kd": {},
    "snapshot-distillation": {"cycle": 2},
    "sad": {},
    "kdcl": {"shift": 1},
}


def loader() -> DataLoader:
    return DataLoader(SampleStream(View(Digits("train"), range(ROWS))), BATCH)


def make(name: str) -> kdx.Scheme:
    torch.manual_seed(0)
    model, other = (ConvNet(width=width, stages=3, input_shape=(1, 8, 8)) for width in (4, 3))
    return kdx.make("scheme", name, [model, other] if name == "kdcl" else model, **SCHEMES[name])


class Watch:
    """Writes down what a scheme is told and what it does in every step, and may stop the run after one."""

    def __init__(self, scheme: kdx.Scheme, stop: int | None = None) -> None:
        self.told: list[tuple[int, int, int]] = []
        self.steps: list[Any] = []
        self.stop, self.step = stop, 0
        start = scheme.epoch_start
        scheme.epoch_start = lambda epoch, epochs: self.told.append((self.step, epoch, epochs)) or start(epoch, epochs)

    @hookimpl
    def kdx_step_end(self, run, step, losses) -> None:
        self.step = step
        scheme, terms = run.scheme, {name: term.item() for name, term in losses.terms.items()}
        self.steps.append((terms, getattr(scheme, "alpha_now", torch.tensor(0.0)).item(), getattr(scheme, "_epoch", 0)))
        if step == self.stop:
            os.kill(os.getpid(), signal.SIGTERM)


def train(name: str, *, stop: int | None = None, **options) -> tuple[kdx.Scheme, Watch]:
    scheme = make(name)
    watch = Watch(scheme, stop)
    kdx.fit(scheme, loader(), steps=STEPS, observers=[watch], device="cpu", **options)
    return scheme, watch


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_pass_over_the_data_of_a_stream_is_an_epoch(accumulate: int) -> None:
    _, watch = train("sad", accumulate=accumulate)
    begun = [(0, 0, 4), (4, 1, 4), (7, 2, 4), (10, 3, 4)]
    if accumulate == 2:
        begun = [(-(-10 * k // 6), k, 7) for k in range(7)]  # 5/3 steps a pass
    assert watch.told == begun


def test_ps_kd_learns_from_the_last_pass_and_its_ramp_reaches_alpha() -> None:
    _, watch = train("ps-kd")
    assert [round(alpha, 6) for _, alpha, _ in watch.steps] == [0.0] * 4 + [0.4] * 3 + [0.6] * 3 + [0.8]
    assert [terms["kd"] > 0 for terms, _, _ in watch.steps] == [False] * 4 + [True] * 7


def test_a_snapshot_of_the_cycles_end_teaches_from_the_pass_after_it_on() -> None:
    _, watch = train("snapshot-distillation")
    assert ["kd" in terms for terms, _, _ in watch.steps] == [False] * 7 + [True] * 4


def test_sad_begins_after_two_thirds_of_the_steps() -> None:
    _, watch = train("sad")
    assert [terms["sad"] > 0 for terms, _, _ in watch.steps] == [False] * 8 + [True] * 3  # 22/3 steps


def test_a_peer_sees_another_view_of_a_sample_in_every_pass() -> None:
    _, watch = train("kdcl")
    assert [epoch for _, _, epoch in watch.steps] == [0] * 4 + [1] * 3 + [2] * 3 + [3]


def test_a_schedule_that_counts_epochs_counts_passes() -> None:
    rates: list[float] = []

    class Rates:
        @hookimpl
        def kdx_step_end(self, run) -> None:
            rates.append(run.learning_rate)

    schedule = {"name": "StepLR", "step_size": 1, "gamma": 0.5, "every": "epoch"}
    kdx.fit(
        make("sad"),
        loader(),
        steps=STEPS,
        observers=[Rates()],
        optimizer={"name": "SGD", "lr": 0.8},
        schedule=schedule,
        device="cpu",
    )
    assert rates == pytest.approx([0.8] * 4 + [0.4] * 3 + [0.2] * 3 + [0.1])


@pytest.mark.parametrize("name", SCHEMES)
def test_a_run_stopped_anywhere_ends_bitwise_where_the_unbroken_one_ends(name: str, tmp_path: Path) -> None:
    schedule = {"name": "StepLR", "step_size": 1, "gamma": 0.5, "every": "epoch"}
    options: dict[str, Any] = {"seed": 5, "schedule": schedule}
    unbroken, whole = train(name, folder=tmp_path / "unbroken", **options)
    told = []
    for stop in (2, 4, 5, 10, None):  # amid passes, and where the second and the fourth begin
        torch.manual_seed(99)
        scheme = make(name)
        watch = Watch(scheme, stop)
        arguments = {**options, "folder": tmp_path / "broken", "resume": True, "device": "cpu", "observers": [watch]}
        if stop is None:
            kdx.fit(scheme, loader(), steps=STEPS, **arguments)
        else:
            with pytest.raises(Interrupted):
                kdx.fit(scheme, loader(), steps=STEPS, **arguments)
        told += [(epoch, epochs) for _, epoch, epochs in watch.told]
    assert told == [(epoch, epochs) for _, epoch, epochs in whole.told]
    assert same(unbroken.state_dict(), scheme.state_dict())


class Finite:
    """Data without a length that end after four batches."""

    def __iter__(self):
        batches = DataLoader(View(Digits("train"), range(ROWS)), 10)
        return islice(batches, 4)


def test_where_only_steps_are_known_the_number_of_epochs_is_the_one_at_the_pace_so_far() -> None:
    scheme = make("sad")
    watch = Watch(scheme)
    kdx.fit(scheme, Finite(), steps=10, observers=[watch], device="cpu")
    assert watch.told == [(0, 0, 10), (4, 1, 3), (8, 2, 3)]


def test_a_stream_of_which_nobody_knows_the_size_is_one_epoch() -> None:
    def endless():
        while True:
            yield torch.randn(4, 1, 8, 8), torch.arange(4)

    scheme = make("sad")
    watch = Watch(scheme)
    kdx.fit(scheme, endless(), steps=6, observers=[watch], device="cpu")
    assert [epoch for _, epoch, _ in watch.told] == [0]
    assert [terms["sad"] > 0 for terms, _, _ in watch.steps] == [False] * 4 + [True] * 2
