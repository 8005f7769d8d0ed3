"""The optimizers and schedules of a run, one for each phase of its scheme."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from kdx.schemes.base import Scheme
from kdx.schemes.phase import Phase, shown
from kdx.training.optim import (
    OptimizerSpec,
    Scheduler,
    ScheduleSpec,
    check_trains,
    make_optimizer,
    make_schedule,
)

__all__ = ["Phases"]


@dataclass(slots=True)
class _Trained:
    phase: Phase
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler | None
    prepared: AcceleratedOptimizer | None = None


class Phases:
    """The optimizers and schedules of all phases of a scheme.

    Args:
        scheme: set up, so that all of its parameters exist.
        optimizer: of the phases that have none of their own.
        schedule: of the same.
        steps: steps of the run; a phase takes ``phase.steps`` of its optimizer for each.
        epochs: epochs of the run.

    Raises:
        ValueError: two phases have one name, a phase trains what is no parameter of the scheme or nothing at all, a
            parameter belongs to no phase, or one optimizer object is to serve several phases.
    """

    def __init__(
        self, scheme: Scheme, optimizer: OptimizerSpec, schedule: ScheduleSpec, *, steps: int, epochs: int
    ) -> None:
        phases = scheme.phases
        _check(scheme, phases, optimizer)
        self._trained = []
        for phase in phases:
            made = make_optimizer(optimizer if phase.optimizer is None else phase.optimizer, phase.parameters)
            check_trains(made, phase.parameters, shown(scheme, phase))
            wanted = schedule if phase.optimizer is None else phase.schedule
            scheduler = make_schedule(wanted, made, steps=steps, epochs=epochs)
            self._trained.append(_Trained(phase, made, scheduler))

    def __len__(self) -> int:
        return len(self._trained)

    @property
    def phases(self) -> list[Phase]:
        """The phases in turn."""
        return [each.phase for each in self._trained]

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """All that is trained, without repeats."""
        found = {id(parameter): parameter for phase in self.phases for parameter in phase.parameters}
        return list(found.values())

    @property
    def learning_rate(self) -> float:
        """Of the first phase's first parameter group."""
        rate: float = self._trained[0].optimizer.param_groups[0]["lr"]
        return rate

    def prepare(self, accelerator: Accelerator, scheme: Scheme) -> Any:
        """Hands scheme and optimizers to Accelerate and returns what runs the scheme."""
        engine, *prepared = accelerator.prepare(scheme, *(each.optimizer for each in self._trained))
        for each, optimizer in zip(self._trained, prepared, strict=True):
            each.prepared = optimizer
        return engine

    def step(self, number: int) -> None:
        """Moves the parameters of one phase, and forgets their gradients."""
        optimizer = self._trained[number].prepared
        assert optimizer is not None  # prepare comes first
        optimizer.step()
        optimizer.zero_grad()

    def advance(self, unit: str) -> None:
        """A step or an epoch of the run has ended; schedules that count it move on."""
        for each in self._trained:
            skipped = each.prepared is not None and each.prepared.step_was_skipped
            if each.scheduler and not (unit == "step" and skipped):
                each.scheduler.step(unit)

    def state_dict(self) -> dict[str, Any]:
        """Phase -> what its optimizer and schedule go on with."""
        return {
            each.phase.name: {
                "optimizer": each.optimizer.state_dict(),
                "schedule": each.scheduler.schedule.state_dict() if each.scheduler else None,
            }
            for each in self._trained
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state.

        Raises:
            ValueError: it is of other phases, or of another optimizer.
        """
        names = [each.phase.name for each in self._trained]
        if list(state) != names:
            raise ValueError(f"it has the phases {list(state)}, the scheme {names}")
        for each in self._trained:
            saved = state[each.phase.name]
            each.optimizer.load_state_dict(saved["optimizer"])
            if each.scheduler:
                each.scheduler.schedule.load_state_dict(saved["schedule"])


def _trains_nothing(scheme: Scheme, phase: Phase, *, of_several: bool) -> str:
    name = type(scheme).__name__
    if of_several:
        return f"phase {phase.name!r} of {name} trains nothing; give it the parameters that it moves"
    frozen = [key for key, student in scheme.students.items() if any(True for _ in student.parameters())]
    if not frozen:
        return f"{name} trains nothing: {' and '.join(scheme.students)} has no parameters; give a model that has some"
    return (
        f"{name} trains nothing: every parameter of {' and '.join(frozen)} is frozen (requires_grad=False); unfreeze "
        "what is to be trained, as with student.requires_grad_(True)"
    )


def _check(scheme: Scheme, phases: tuple[Phase, ...], optimizer: OptimizerSpec) -> None:
    name = type(scheme).__name__
    if len({phase.name for phase in phases}) < len(phases) or not phases:
        raise ValueError(f"{name}.phases must have names of their own, got {[phase.name for phase in phases]}")
    named = {id(parameter): key for key, parameter in scheme.named_parameters() if parameter.requires_grad}
    for phase in phases:
        if not phase.parameters:
            raise ValueError(_trains_nothing(scheme, phase, of_several=len(phases) > 1))
        if any(id(parameter) not in named for parameter in phase.parameters):
            raise ValueError(
                f"phase {phase.name!r} of {name} trains a parameter that is frozen or no part of the scheme; hold what "
                "it trains as a submodule, and what is frozen out of its parameters"
            )
    trained = {id(parameter) for phase in phases for parameter in phase.parameters}
    if missing := [key for identity, key in named.items() if identity not in trained]:
        raise ValueError(f"no phase of {name} trains {missing[0]!r}; add it to one, or freeze it")
    if isinstance(optimizer, torch.optim.Optimizer) and sum(phase.optimizer is None for phase in phases) > 1:
        raise ValueError(
            f"{name} trains in {len(phases)} phases, each with an optimizer over its own parameters; give optimizer= "
            "by name or as a function of parameters, not as one object"
        )
