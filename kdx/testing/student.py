"""Checks of a derivation of students: its plan, and the edits that the plan makes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from kdx.errors import StudentError
from kdx.options import options_of
from kdx.students.contract import Contract
from kdx.students.derivation import Derivation
from kdx.students.edit import Edit, Plan
from kdx.testing.check import Check, bind, fail, require, run_all
from kdx.testing.tags import StudentTags
from kdx.testing.toys import toy_teacher

__all__ = ["check_student", "student_checks"]


def check_student(
    derivation: Derivation, *, tags: StudentTags | None = None, expected_failures: Mapping[str, str] | None = None
) -> None:
    """Runs every check of a way of deriving students.

    Args:
        derivation: an instance; it is left as it is.
        tags: the teacher that it is tried on, see :class:`kdx.testing.StudentTags`.
        expected_failures: check name -> why it is known not to hold. One that holds after all is an error.

    Raises:
        CheckFailed: a check does not hold; the message names each and what it found.

    Example:
        >>> import kdx
        >>> check_student(kdx.make("student", "low-rank"))
    """
    run_all(student_checks(derivation, tags=tags, expected_failures=expected_failures))


def student_checks(
    derivation: Derivation, *, tags: StudentTags | None = None, expected_failures: Mapping[str, str] | None = None
) -> list[Check]:
    """The checks of a derivation."""
    if not isinstance(derivation, Derivation):
        raise TypeError(
            f"derivation: expected an instance of kdx.students.Derivation, got {derivation!r}; give an object of it"
        )
    subject, found = type(derivation).__name__, tags or StudentTags()
    return bind(subject, list(_applicable()), derivation, found, expected_failures=expected_failures)


def _applicable() -> Iterator[Callable[[Derivation, StudentTags], None]]:
    yield check_documented
    yield check_plan
    yield check_teacher_unchanged
    yield check_rising_cost
    yield check_ends_with_the_teacher
    yield check_contract
    yield check_built_alike
    yield check_origins
    yield check_written_down


def check_documented(derivation: Derivation, tags: StudentTags) -> None:
    """The class has a docstring that describes every option."""
    text = inspect.cleandoc(type(derivation).__dict__.get("__doc__") or "")
    require(bool(text), "the class has no docstring of its own")
    if missing := [option.name for option in options_of(type(derivation)) if not option.doc]:
        fail(f"the docstring says nothing of the options {missing}; give each a line under 'Args:'")


def check_plan(derivation: Derivation, tags: StudentTags) -> None:
    """The plan has at least one student beside the teacher, made by edits of the derivation's class."""
    plan = _plan(derivation, tags)
    require(plan.settings > 1, "nothing about the teacher it is tried on changes; give another one in StudentTags")
    for place in _places(plan):
        edit = plan.edit(place)
        require(isinstance(edit, derivation.edit), f"the edit at place {place} is {edit!r}")


def check_teacher_unchanged(derivation: Derivation, tags: StudentTags) -> None:
    """Planning leaves the teacher's structure, weights and modes as they are."""
    teacher, inputs = _tried(tags)
    before = copy.deepcopy(teacher)
    plan = derivation.plan(teacher, inputs)
    for place in _places(plan):
        plan.edit(place)
    require(str(teacher) == str(before), "its modules are others now")
    require(_same(teacher, before), "its weights are others now")
    modes = [[module.training for module in model.modules()] for model in (teacher, before)]
    require(modes[0] == modes[1], "modules changed between training and evaluation mode")


def check_rising_cost(derivation: Derivation, tags: StudentTags) -> None:
    """From one setting to the next the number of parameters does not fall, and the first has fewer than the last."""
    plan = _plan(derivation, tags)
    sizes = [sum(p.numel() for p in _built(plan.edit(place), tags).parameters()) for place in range(plan.settings)]
    require(sizes == sorted(sizes) and sizes[0] < sizes[-1], f"the settings have {sizes} parameters")


def check_ends_with_the_teacher(derivation: Derivation, tags: StudentTags) -> None:
    """The student of the last setting is the teacher, with the teacher's weights."""
    plan = _plan(derivation, tags)
    student, _ = _derived(plan.edit(plan.settings - 1), tags)
    require(_same(student, _tried(tags)[0]), "the weights of the last setting are not the teacher's")


def check_contract(derivation: Derivation, tags: StudentTags) -> None:
    """Every student takes the teacher's inputs and gives outputs of the same shapes and types."""
    plan, (teacher, inputs) = _plan(derivation, tags), _tried(tags)
    contract = Contract.of(teacher, inputs)
    for place in _places(plan):
        student, _ = _derived(plan.edit(place), tags)
        try:
            contract.check(student)
        except StudentError as error:
            fail(f"at place {place} of {plan.settings}: {error}")


def check_built_alike(derivation: Derivation, tags: StudentTags) -> None:
    """An edit makes the same structure without the teacher's weights (``build``) as with them (``derive``)."""
    plan = _plan(derivation, tags)
    for place in _places(plan):
        edit = plan.edit(place)
        built, derived = _shapes(_built(edit, tags)), _shapes(_derived(edit, tags)[0])
        different = [name for name in built.keys() | derived.keys() if built.get(name) != derived.get(name)]
        require(not different, f"at place {place} build and derive give other tensors: {sorted(different)[:5]}")


def check_origins(derivation: Derivation, tags: StudentTags) -> None:
    """``derive`` says where every weight comes from that is not the teacher's of the same name, with its shape."""
    plan, teacher = _plan(derivation, tags), _tried(tags)[0].state_dict()
    for place in _places(plan):
        student, origins = _derived(plan.edit(place), tags)
        state = student.state_dict()
        wrong = [n for n, origin in origins.items() if n not in state or tuple(state[n].shape) != origin.shape]
        require(not wrong, f"at place {place} the origins name {sorted(wrong)[:5]}, which are not so in the student")
        silent = [
            name
            for name, tensor in state.items()
            if name not in origins and not (name in teacher and torch.equal(tensor, teacher[name]))
        ]
        require(not silent, f"at place {place} {sorted(silent)[:5]} are not the teacher's, and have no origin")


def check_written_down(derivation: Derivation, tags: StudentTags) -> None:
    """An edit written as JSON and read again is the same edit, and names the derivation in ``how``."""
    plan = _plan(derivation, tags)
    for place in _places(plan):
        edit = plan.edit(place)
        text = edit.model_dump_json()
        read = type(edit).model_validate_json(text)
        require(read == edit and read.model_dump_json() == text, f"at place {place} {edit!r} is read as {read!r}")
        default = derivation.edit.model_fields["how"].default
        require(isinstance(default, str) and edit.how == default, f"how is {edit.how!r}, its default {default!r}")


def _tried(tags: StudentTags) -> tuple[nn.Module, Any]:
    """The teacher, the same every time, and an example of what it takes."""
    teacher = tags.teacher() if tags.teacher is not None else toy_teacher()
    return teacher, torch.zeros(2, 1, 8, 8) if tags.inputs is None else tags.inputs


def _plan(derivation: Derivation, tags: StudentTags) -> Plan:
    return derivation.plan(*_tried(tags))


def _places(plan: Plan) -> list[int]:
    """The first, a middle and the last setting."""
    return sorted({0, plan.settings // 2, plan.settings - 1})


def _built(edit: Edit, tags: StudentTags) -> nn.Module:
    model, _ = _tried(tags)
    edit.build(model)
    return model


def _derived(edit: Edit, tags: StudentTags) -> tuple[nn.Module, dict[str, Any]]:
    model, inputs = _tried(tags)
    return model, edit.derive(model, inputs)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _same(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
