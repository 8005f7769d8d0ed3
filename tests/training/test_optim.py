"""Optimizers and schedules in every form that a script may have them in."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, ReduceLROnPlateau, StepLR
from transformers import get_linear_schedule_with_warmup

import kdx
from kdx.errors import Interrupted
from kdx.hookspecs import hookimpl
from kdx.training.run import Run
from tests.stopping import Stop

SGD = functools.partial(torch.optim.SGD, lr=0.4)


class Rates:
    """The learning rate after every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    @hookimpl
    def kdx_step_end(self, run) -> None:
        self.seen.append(run.learning_rate)


def data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(6, 4, generator=generator), torch.arange(6) % 3) for _ in range(3)]


def fit(model: nn.Module, *observers: object, **options) -> tuple[Run, list[float]]:
    rates = Rates()
    run = kdx.fit(kdx.Supervised(model), data(), epochs=3, observers=[rates, *observers], device="cpu", **options)
    return run, rates.seen


def by_hand(model: nn.Module, every: str) -> None:
    optimizer = SGD(model.parameters())
    scheduler = StepLR(optimizer, 1, gamma=0.5)
    for _ in range(3):
        for inputs, targets in data():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            if every == "step":
                scheduler.step()
        if every == "epoch":
            scheduler.step()


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 3)


@pytest.mark.parametrize("every", ["epoch", "step"])
def test_a_schedule_that_is_built_already_takes_the_steps_of_a_loop_by_hand(every) -> None:
    reference, student = model(), model()
    by_hand(reference, every)
    optimizer = SGD(student.parameters())
    fit(student, optimizer=optimizer, schedule=(StepLR(optimizer, 1, gamma=0.5), every))
    assert torch.allclose(student.weight, reference.weight, rtol=1e-6)


def test_a_schedule_of_another_library_counts_steps() -> None:
    student = model()
    optimizer = SGD(student.parameters())
    schedule = get_linear_schedule_with_warmup(optimizer, 3, 9)
    _, rates = fit(student, optimizer=optimizer, schedule=(schedule, "step"))
    assert rates == pytest.approx([0.4 * rate for rate in (1 / 3, 2 / 3, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0)])


@pytest.mark.parametrize(
    ("optimizer", "schedule", "rates"),
    [
        (SGD, functools.partial(StepLR, step_size=3, gamma=0.5), (0.4, 0.4, 0.2, 0.2, 0.2, 0.1, 0.1, 0.1, 0.05)),
        (SGD, (lambda each: StepLR(each, 1, 0.5), "epoch"), (0.4, 0.4, 0.4, 0.2, 0.2, 0.2, 0.1, 0.1, 0.1)),
        (lambda parameters: torch.optim.SGD(parameters, 0.4), None, (0.4,) * 9),
        (torch.optim.SGD, None, (1e-3,) * 9),
        (SGD, lambda each: LambdaLR(each, lambda step: 1.0), (0.4,) * 9),
    ],
    ids=["partials", "every epoch", "lambda", "class", "lambdas"],
)
def test_classes_partials_and_functions_make_both(optimizer, schedule, rates) -> None:
    _, seen = fit(model(), optimizer=optimizer, schedule=schedule)
    assert seen == pytest.approx(rates)


def resumable(folder, *observers: object, **options) -> Run:
    student = model()
    optimizer = SGD(student.parameters(), momentum=0.9)
    schedule = (StepLR(optimizer, 2, gamma=0.5), "step")
    return fit(student, *observers, optimizer=optimizer, schedule=schedule, folder=folder, **options)[0]


def test_a_run_with_built_ones_resumes_where_it_was(tmp_path) -> None:
    whole = resumable(tmp_path / "whole")
    with pytest.raises(Interrupted):
        resumable(tmp_path / "broken", Stop(4))
    rest = resumable(tmp_path / "broken", resume=True)
    assert rest.history == whole.history
    assert rest.learning_rate == whole.learning_rate


class Elsewhere:
    def step(self, epoch: int) -> None:
        pass


def refused(optimizer: torch.optim.Optimizer) -> dict[str, tuple[object, type[Exception], str]]:
    other = SGD(nn.Linear(2, 2).parameters())
    return {
        "unsaid": (
            StepLR(optimizer, 1),
            ValueError,
            r"does not say whether it counts epochs or optimizer steps; write",
        ),
        "other": (
            (StepLR(other, 1), "epoch"),
            ValueError,
            r"drives another optimizer .* optimizer=optimizer, schedule=",
        ),
        "unit": (
            (StepLR(optimizer, 1), "batch"),
            ValueError,
            r"expected \(schedule, 'epoch'\) or \(schedule, 'step'\)",
        ),
        "pair": (("StepLR", "epoch"), TypeError, r"expected a schedule or a function of the optimizer in the pair"),
        "class": (CosineAnnealingLR, TypeError, r"CosineAnnealingLR cannot be called with the optimizer alone .*T_max"),
        "wrong": (lambda each: each, TypeError, r"<lambda> must give a schedule of torch.optim.lr_scheduler on"),
        "foreign": (Elsewhere(), TypeError, r"got .*Elsewhere, which steps in another way"),
        "plateau": (
            (ReduceLROnPlateau(optimizer), "epoch"),
            ValueError,
            r"waits for a metric that no step of a run has",
        ),
        "its name": ("ReduceLROnPlateau", ValueError, r"waits for a metric that no step of a run has"),
        "partial": (ReduceLROnPlateau, ValueError, r"waits for a metric that no step of a run has"),
        "optimizer": (optimizer, TypeError, r"got torch.optim.sgd.SGD, which steps in another way"),
    }


@pytest.mark.parametrize("case", refused(SGD(nn.Linear(2, 2).parameters())))
def test_a_schedule_that_cannot_be_taken_is_refused_before_the_run(tmp_path, case) -> None:
    student = model()
    optimizer = SGD(student.parameters())
    schedule, error, message = refused(optimizer)[case]
    with pytest.raises(error, match=message):
        fit(student, optimizer=optimizer, schedule=schedule, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda: None, r"<lambda> cannot be called with the parameters alone .*; give a function that takes the param"),
        (lambda parameters: None, r"optimizer: <lambda> must give a torch.optim.Optimizer, got NoneType"),
        (StepLR, r"StepLR cannot be called with the parameters alone"),
        (None, r"optimizer: expected a name"),
    ],
)
def test_what_makes_no_optimizer_is_said(optimizer, message) -> None:
    with pytest.raises(TypeError, match=message):
        fit(model(), optimizer=optimizer)
