"""A scheme that steps more than once: every phase moves its own parameters, by its own optimizer, and no others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import kdx
from kdx.losses import Losses
from kdx.schemes.phase import Phase


class Game(kdx.Scheme):
    """A generator against a student, as careless as can be: both losses reach both parts."""

    def __init__(self, **own) -> None:
        super().__init__(task=None)
        torch.manual_seed(0)
        self.generator, self.student = nn.Linear(3, 3), nn.Linear(3, 2)
        self.own = own
        self.seen: list[str] = []

    @property
    def students(self):
        return {"student": self.student}

    @property
    def phases(self):
        return (
            Phase("generator", self.search, tuple(self.generator.parameters()), **self.own),
            Phase("student", self.teach, tuple(self.student.parameters())),
        )

    def search(self, batch):
        self.seen.append("generator")
        return {"search": -self.student(self.generator(batch.inputs)).square().mean()}

    def teach(self, batch):
        self.seen.append("student")
        return {"teach": self.student(self.generator(batch.inputs)).square().mean()}


BATCHES = [kdx.Batch(torch.randn(4, 3)) for _ in range(3)]
DECAY = {"name": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.5}


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(one: dict, other: dict) -> bool:
    return all(value.equal(other[name]) for name, value in one.items())


def fit(scheme: kdx.Scheme, **options) -> kdx.Scheme:
    options = {"optimizer": DECAY, "schedule": None, "device": "cpu", "epochs": 1} | options
    kdx.fit(scheme, BATCHES, **options)
    return scheme


def test_a_phase_moves_its_own_parameters_alone_though_its_loss_reaches_others(monkeypatch) -> None:
    from kdx.training.phases import Phases

    scheme, moved = Game(), []
    step = Phases.step

    def watched(phases, number):
        before = state(scheme.generator), state(scheme.student)
        others = (scheme.student, scheme.generator)[number]
        assert all(parameter.grad is None for parameter in others.parameters())
        step(phases, number)
        moved.append((not equal(before[0], state(scheme.generator)), not equal(before[1], state(scheme.student))))

    monkeypatch.setattr(Phases, "step", watched)
    fit(scheme)
    assert moved == [(True, False), (False, True)] * 3
    assert scheme.seen == ["generator", "student"] * 3
    assert all(parameter.requires_grad for parameter in scheme.parameters())


def test_a_phase_of_several_steps_with_an_optimizer_of_its_own_is_the_loop_by_hand() -> None:
    scheme = fit(Game(optimizer={"name": "Adam", "lr": 0.01}, schedule={"name": "LinearLR"}, steps=2))
    by_hand = Game()
    adam = torch.optim.Adam(by_hand.generator.parameters(), lr=0.01)
    linear = torch.optim.lr_scheduler.LinearLR(adam)
    sgd = torch.optim.SGD(by_hand.student.parameters(), lr=0.1, momentum=0.9, weight_decay=0.5)
    for batch in BATCHES:
        for _ in range(2):
            adam.zero_grad()
            (-by_hand.student(by_hand.generator(batch.inputs)).square().mean()).backward()
            adam.step()
        sgd.zero_grad()
        by_hand.student(by_hand.generator(batch.inputs)).square().mean().backward()
        sgd.step()
        linear.step()
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(scheme.state_dict()[name], value, rtol=1e-6, atol=1e-7, msg=name)


def test_a_stopped_run_goes_on_with_the_optimizer_of_every_phase(tmp_path) -> None:
    own = {"optimizer": {"name": "Adam", "lr": 0.01}, "schedule": "CosineAnnealingLR"}

    class Stop:
        @kdx.hookimpl
        def kdx_step_end(self, run, step) -> None:
            if step == 2:
                raise RuntimeError("stop")

    unbroken = fit(Game(**own), epochs=2)
    with pytest.raises(kdx.KdxError):
        fit(Game(**own), epochs=2, folder=tmp_path, observers=[Stop()])
    resumed = fit(Game(**own), epochs=2, folder=tmp_path, resume=True)
    assert equal(state(unbroken), state(resumed))


def test_a_loop_of_ones_own_is_fit() -> None:
    expected, scheme = fit(Game()), Game()
    optimizers = {
        phase.name: torch.optim.SGD(phase.parameters, lr=0.1, momentum=0.9, weight_decay=0.5) for phase in scheme.phases
    }
    for batch in BATCHES:
        for phase in scheme.phases:
            with scheme.only(phase):
                scheme(batch, phase.name).total.backward()
            optimizers[phase.name].step()
            optimizers[phase.name].zero_grad()
    assert equal(state(expected), state(scheme))


def test_a_call_has_to_name_one_of_several_phases() -> None:
    with pytest.raises(ValueError, match=r"Game trains in phases, so name one: .* one of \['generator', 'student'\]"):
        Game()(BATCHES[0])
    with pytest.raises(ValueError, match="Game has no phase 'studnet'; did you mean 'student'"):
        Game()(BATCHES[0], "studnet")
    assert isinstance(Game()(BATCHES[0], "student"), Losses)


class Broken(Game):
    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    @property
    def phases(self):
        return self.change(self, super().phases)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda scheme, phases: phases[:1], "no phase of Broken trains 'student.weight'; add it to one, or freeze it"),
        (lambda scheme, phases: (), "Broken.phases must have names of their own"),
        (lambda scheme, phases: (phases[0], phases[0]), "Broken.phases must have names of their own"),
        (
            lambda scheme, phases: (*phases, Phase("nothing", scheme.teach, ())),
            "phase 'nothing' of Broken trains nothing; give it the parameters that it moves",
        ),
        (
            lambda scheme, phases: (*phases, Phase("outside", scheme.teach, (nn.Parameter(torch.ones(1)),))),
            "phase 'outside' of Broken trains a parameter that is frozen or no part of the scheme",
        ),
    ],
)
def test_phases_that_do_not_fit_the_scheme_are_refused_before_training(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        fit(Broken(change))


def test_one_optimizer_object_cannot_serve_two_phases() -> None:
    scheme = Game()
    with pytest.raises(ValueError, match="Game trains in 2 phases, each with an optimizer over its own parameters"):
        fit(scheme, optimizer=torch.optim.SGD(scheme.parameters(), lr=0.1))


def test_a_phase_checks_its_own_options() -> None:
    with pytest.raises(ValueError, match="phase 'a': steps must be an integer >= 1, got 0"):
        Phase("a", lambda batch: {}, (), steps=0)
    with pytest.raises(ValueError, match="phase 'a': schedule needs an optimizer of the phase's own"):
        Phase("a", lambda batch: {}, (), schedule="LinearLR")
