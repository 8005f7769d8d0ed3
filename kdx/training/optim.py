"""Optimizers and schedules of torch, by name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

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
"""``"SGD"``, ``Ref("SGD", lr=0.1)`` or its mapping, an optimizer, or a callable that takes parameters: its class,
:func:`functools.partial`, a function."""

_Made = Callable[[torch.optim.Optimizer], LRScheduler]

ScheduleSpec = RefLike | _Made | LRScheduler | tuple[LRScheduler | _Made, Literal["step", "epoch"]] | None
"""``"CosineAnnealingLR"``, ``Ref("MultiStepLR", milestones=[5], every="epoch")`` or its mapping, a callable that takes
the optimizer, or None. It counts optimizer steps; ``(callable, "epoch")`` says that what the callable makes counts
epochs. A schedule that is built already, on the optimizer that is given too, has to say what it counts:
``(schedule, "epoch")`` or ``(schedule, "step")``."""

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
        TypeError: an option the optimizer does not have, or a callable that makes none of the parameters alone.
    """
    if isinstance(spec, torch.optim.Optimizer):
        return spec
    if callable(spec):
        built = _called("optimizer", spec, parameters, "the parameters", 'kdx.Ref("SGD", lr=0.1)')
        if not isinstance(built, torch.optim.Optimizer):
            raise TypeError(f"optimizer: {_shown(spec)} must give a torch.optim.Optimizer, got {type(built).__name__}")
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

    Raises:
        UnknownNameError: torch has none of this name.
        TypeError: an option the schedule does not have, or a callable that makes none of the optimizer alone.
        ValueError: one that was built does not say what it counts, or drives another optimizer; or it needs a metric.
    """
    if spec is None:
        return None
    if isinstance(spec, LRScheduler | tuple) or callable(spec):
        return _given(spec, optimizer)
    if callable(getattr(spec, "step", None)):
        raise TypeError(
            f"schedule: expected one of torch.optim.lr_scheduler, got {type(spec).__module__}."
            f"{type(spec).__name__}, which steps in another way; give one of torch by name, or LambdaLR"
        )
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
    _check_needs_no_metric(target)
    if name in _LENGTH and "steps_per_epoch" not in options:
        options.setdefault(_LENGTH[name], steps if every == "step" else epochs)
    try:
        return Scheduler(target(optimizer, **_checked(target, "schedule", name, options)), every)
    except ZeroDivisionError as error:  # OneCycleLR divides by the length of its phases
        raise ValueError(f"schedule {name} with {options} does not fit {steps} steps; train longer") from error


def _given(spec: Any, optimizer: torch.optim.Optimizer) -> Scheduler:
    """A schedule that was built by its owner, or that a function makes."""
    every = None
    if isinstance(spec, tuple):
        if len(spec) != 2 or spec[1] not in ("step", "epoch"):
            raise ValueError(f"schedule: expected (schedule, 'epoch') or (schedule, 'step'), got {spec!r}")
        spec, every = spec
    if isinstance(spec, LRScheduler):
        name = type(spec).__name__
        if spec.optimizer is not optimizer:
            raise ValueError(
                f"schedule {name} drives another optimizer than the one that the run takes; give that one too, as "
                f"optimizer=optimizer, schedule=(schedule, 'epoch'), or the name: kdx.Ref({name!r}, every='epoch', ...)"
            )
        if every is None:
            raise ValueError(
                f"schedule {name}: an object does not say whether it counts epochs or optimizer steps; write "
                "schedule=(schedule, 'epoch') or schedule=(schedule, 'step')"
            )
        made = spec
    else:
        if not callable(spec):
            raise TypeError(f"schedule: expected a schedule or a function of the optimizer in the pair, got {spec!r}")
        made = _called("schedule", spec, optimizer, "the optimizer", 'kdx.Ref("StepLR", step_size=1, every="epoch")')
        if not isinstance(made, LRScheduler) or made.optimizer is not optimizer:
            raise TypeError(
                f"schedule: {_shown(spec)} must give a schedule of torch.optim.lr_scheduler on the optimizer that it "
                f"is handed, got {type(made).__name__}"
            )
    _check_needs_no_metric(type(made))
    return Scheduler(made, every or "step")


def _called(what: str, function: Any, argument: Any, shown: str, example: str) -> Any:
    try:
        inspect.signature(function).bind(argument)
    except TypeError as error:
        raise TypeError(
            f"{what}: {_shown(function)} cannot be called with {shown} alone ({error}); give a function that takes "
            f"{shown}, as functools.partial(...), or the name with options, as {example}"
        ) from error
    except ValueError:
        pass  # one written in C does not tell
    return function(argument)


def _shown(function: Any) -> str:
    inner = function.func if isinstance(function, functools.partial) else function
    return getattr(inner, "__name__", None) or type(inner).__name__


def _check_needs_no_metric(schedule: Any) -> None:
    if issubclass(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise ValueError(
            f"schedule {schedule.__name__} waits for a metric that no step of a run has; take CosineAnnealingLR or "
            "MultiStepLR, or end the run when a metric stands still: observers=[kdx.observers.EarlyStopping(...)]"
        )


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
