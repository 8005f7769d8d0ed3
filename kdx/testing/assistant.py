"""Checks of a teacher assistant's plan."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from kdx.assistants.base import Assistant
from kdx.ref import Ref
from kdx.stage import Stage, Structure
from kdx.testing.check import Check, bind, fail, require, run_all

__all__ = ["assistant_checks", "check_assistant"]

TEACHER = Ref("convnet", width=8)
STUDENT = Ref("convnet", width=2)


def check_assistant(assistant: Assistant, *, expected_failures: Mapping[str, str] | None = None) -> None:
    """Runs every check of an assistant.

    Args:
        assistant: an instance; it is left as it is.
        expected_failures: check name -> why it is known not to hold. One that holds after all is an error.

    Raises:
        CheckFailed: a check does not hold; the message names each and what it found.
    """
    run_all(assistant_checks(assistant, expected_failures=expected_failures))


def assistant_checks(assistant: Assistant, *, expected_failures: Mapping[str, str] | None = None) -> list[Check]:
    """The checks of an assistant."""
    if not isinstance(assistant, Assistant):
        raise TypeError(f"assistant: expected an instance of kdx.Assistant, got {assistant!r}; give an object of it")
    return bind(type(assistant).__name__, list(_applicable()), assistant, expected_failures=expected_failures)


def _applicable() -> Iterator[Callable[[Assistant], None]]:
    yield check_plan_ends_with_the_student
    yield check_teachers_come_first
    yield check_deterministic
    yield check_moves_no_weights


def check_plan_ends_with_the_student(assistant: Assistant) -> None:
    """The plan is a list of stages with different names, and the last one distils the student, or a structure that is
    made of it.
    """
    plan = _plan(assistant)
    require(bool(plan) and all(isinstance(stage, Stage) for stage in plan), f"the plan is {plan!r}, not stages")
    names = [stage.name for stage in plan]
    require(len(set(names)) == len(names), f"two stages have one name: {names}")
    last = plan[-1]
    derived = isinstance(last.model, Structure)
    require(
        derived or last.model == STUDENT, f"the last stage {last.name!r} trains {last.model}, not the student {STUDENT}"
    )
    require(last.role == "distilled", f"the last stage {last.name!r} has the role {last.role!r}, not 'distilled'")


def check_teachers_come_first(assistant: Assistant) -> None:
    """Every stage under a scheme has teachers, and what a stage needs runs before it: another stage of the plan,
    ``teacher`` (unless ``has_teacher`` is False) or ``alone``.
    """
    known = {"teacher", "alone"} if assistant.has_teacher else {"alone"}
    for stage in _plan(assistant):
        if stage.role == "distilled":
            require(bool(stage.teachers), f"stage {stage.name!r} has no teacher")
        if missing := [name for name in stage.needs if name not in known]:
            fail(f"stage {stage.name!r} needs {missing}, which did not run before it; known: {sorted(known)}")
        known.add(stage.name)


def check_deterministic(assistant: Assistant) -> None:
    """The same models give the same plan, again, from a copy, and whatever the random state."""
    plans = [_plan(assistant), _plan(assistant)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        plans.append(_plan(copy.deepcopy(assistant)))
    require(plans[0] == plans[1], f"a second plan is another one: {plans[1]} instead of {plans[0]}")
    require(plans[0] == plans[2], f"a copy plans otherwise under another seed: {plans[2]} instead of {plans[0]}")


def check_moves_no_weights(assistant: Assistant) -> None:
    """Planning builds and trains no model, and draws no random number."""
    teacher, student = _models(assistant)
    built: list[str] = []

    def note(module: nn.Module, name: str, parameter: Any) -> None:
        built.append(f"{type(module).__name__}.{name}")

    random = torch.get_rng_state()
    handle = torch_module.register_module_parameter_registration_hook(note)
    try:
        assistant.plan(teacher, student)
    finally:
        handle.remove()
    require(not built, f"planning built parameters: {built[:5]}")
    require(torch.equal(torch.get_rng_state(), random), "planning drew random numbers")


def _plan(assistant: Assistant) -> list[Stage]:
    return assistant.plan(*_models(assistant))


def _models(assistant: Assistant) -> tuple[Ref, Ref]:
    """The models an experiment hands to a plan: without a teacher the student's stands in for it."""
    return copy.deepcopy((TEACHER if assistant.has_teacher else STUDENT, STUDENT))
