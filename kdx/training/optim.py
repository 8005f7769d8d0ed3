"""Optimizers and schedules of torch, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from kdx.errors import UnknownNameError, nearest
from kdx.ranges import check_number
from kdx.ref import Ref, RefLike

__all__ = [
    "OptimizerSpec",
    "ScheduleSpec",
    "Scheduler",
    "check_complete",
    "check_trains",
    "make_optimizer",
    "make_schedule",
]

OptimizerSpec = RefLike | torch.optim.Optimizer | Callable[[Iterable[torch.Tensor]], torch.optim.Optimizer]
"""``"SGD"``, ``Ref("SGD", lr=0.1)`` or its mapping, a callable that takes parameters, or an optimizer."""

ScheduleSpec = RefLike | Callable[[torch.optim.Optimizer], LRScheduler] | None
"""``"CosineAnnealingLR"``, ``Ref("MultiStepLR", milestones=[5], every="epoch")`` or its mapping, a callable or None."""

_DEFAULTS: dict[str, dict[str, Any]] = {"AdamW": {"lr": 1e-3}, "SGD": {"lr": 0.05, "momentum": 0.9}}
_LENGTH = {"CosineAnnealingLR": "T_max", "OneCycleLR": "total_steps", "PolynomialLR": "total_iters"}


class Scheduler:
    """A torch schedule together with how often it steps.

    Args:
        schedule: the torch object.
        every: ``"step"`` or ``"epoch"``.
    """

    def __init__(self, schedule: LRScheduler, every: str) -> None:
        self.schedule = schedule
        self.every = every

    def step(self, unit: str) -> None:
        """Steps the schedule if ``unit`` (``"step"`` or ``"epoch"``) is its own."""
        if unit == self.every:
            self.schedule.step()


def make_optimizer(spec: OptimizerSpec, parameters: Iterable[torch.Tensor]) -> torch.optim.Optimizer:
    """Builds an optimizer of ``torch.optim``.

    Args:
        spec: see :data:`OptimizerSpec`. Without options AdamW takes lr 1e-3 and SGD lr 0.05 with momentum 0.9.
        parameters: what it trains.

    Raises:
        UnknownNameError: torch.optim has none of this name.
        TypeError: an option the optimizer does not have.
    """
    if isinstance(spec, torch.optim.Optimizer):
        return spec
    if callable(spec):
        built: torch.optim.Optimizer = spec(parameters)
        return built
    ref = Ref.of(spec, "optimizer")
    name, options = ref.name, ref.options
    known = {
        key: value
        for key, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    target = _find("optimizer", name, known)
    options = _checked(target, "optimizer", name, _DEFAULTS.get(name, {}) | options)
    made: torch.optim.Optimizer = target(parameters, **options)
    return made


def check_complete(before: Iterable[torch.nn.Parameter], named: Iterable[tuple[str, torch.nn.Parameter]]) -> None:
    """Checks that a step has made no parameter that asks for a gradient.

    Args:
        before: those that were there when the optimizer was built; it may have been given fewer.
        named: those that are there now.

    Raises:
        RuntimeError: one came too late for the optimizer; it is named.
    """
    known = {id(parameter) for parameter in before}
    for name, parameter in named:
        if parameter.requires_grad and id(parameter) not in known:
            raise RuntimeError(
                f"the parameter {name!r} appeared in the first step, so no optimizer trains it; build it in setup, and "
                "let ready say that it is there"
            )


def check_trains(optimizer: torch.optim.Optimizer, parameters: Iterable[torch.Tensor], who: str) -> None:
    """Checks that an optimizer moves something of what it is there for.

    Args:
        optimizer: as it was made, before its schedule.
        parameters: what it is there for.
        who: how messages name the owner of the parameters.

    Raises:
        ValueError: it has none of the parameters, or a learning rate is negative, NaN, infinite, or 0 in every group.
        TypeError: a learning rate is no number.
    """
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    name = type(optimizer).__name__
    if not any(id(parameter) in own for parameter in parameters):
        raise ValueError(
            f"optimizer {name} has no parameter that {who} trains, so nothing would be learned; build it from those of "
            "the student that is given to the scheme, or give its name or a function of parameters"
        )
    rates = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups if "lr" in group]
    rates = [rate.item() if isinstance(rate, torch.Tensor) else rate for rate in rates]
    for rate in rates:
        check_number(f"optimizer {name}: lr", rate, least=0)
    if rates and not any(rates):
        raise ValueError(f"optimizer {name}: lr must be > 0, got 0, with which nothing would be learned")


def make_schedule(spec: ScheduleSpec, optimizer: torch.optim.Optimizer, *, steps: int, epochs: int) -> Scheduler | None:
    """Builds a schedule of ``torch.optim.lr_scheduler``.

    Args:
        spec: see :data:`ScheduleSpec`. Beside the schedule's own options, ``every`` is ``"step"`` (default) or
            ``"epoch"``, and says what the schedule counts. The length of CosineAnnealingLR (``T_max``), OneCycleLR
            (``total_steps``) and PolynomialLR (``total_iters``) defaults to that of the run, counted that way.
        optimizer: what it drives.
        steps: optimizer steps of the run.
        epochs: epochs of the run.
    """
    if spec is None:
        return None
    if callable(spec):
        return Scheduler(spec(optimizer), "step")
    ref = Ref.of(spec, "schedule")
    name, options = ref.name, ref.options
    every = options.pop("every", "step")
    if every not in ("step", "epoch"):
        raise ValueError(f"schedule {name}: every must be 'step' or 'epoch', got {every!r}")
    module = torch.optim.lr_scheduler
    known = {
        key: value
        for key, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, LRScheduler)
        and not key.startswith("_")
        and key != "LRScheduler"
    }
    target = _find("schedule", name, known)
    if name in _LENGTH and "steps_per_epoch" not in options:
        options.setdefault(_LENGTH[name], steps if every == "step" else epochs)
    try:
        return Scheduler(target(optimizer, **_checked(target, "schedule", name, options)), every)
    except ZeroDivisionError as error:  # OneCycleLR divides by the length of its phases
        raise ValueError(f"schedule {name} with {options} does not fit {steps} steps; train longer") from error


def _find(what: str, name: str, known: Mapping[str, Any]) -> Any:
    if name not in known:
        raise UnknownNameError(f"torch has no {what} named {name!r}; {nearest(name, known)}")
    return known[name]


def _checked(target: Any, what: str, name: str, options: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(target).parameters
    for key in options:
        if key not in parameters:
            known = [p for p in parameters if p not in ("params", "optimizer")]
            raise TypeError(f"{what} {name} has no option {key!r}; {nearest(key, known)}")
    return options
