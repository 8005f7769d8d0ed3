"""Checks of a derivation of students: its plan, and the edits that the plan makes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from kdx.capture import call
from kdx.errors import StudentError
from kdx.modes import evaluating
from kdx.options import options_of
from kdx.registry import default_plugins
from kdx.students.calls import tensors_in
from kdx.students.contract import Contract
from kdx.students.derivation import Derivation
from kdx.students.edit import Edit, Plan
from kdx.students.student_data import StudentData
from kdx.testing.check import Check, bind, fail, require, run_all
from kdx.testing.tags import StudentTags
from kdx.testing.toys import toy_batches, toy_teacher

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
    return bind(subject, list(_applicable(found)), derivation, found, expected_failures=expected_failures)


def _applicable(tags: StudentTags) -> Iterator[Callable[[Derivation, StudentTags], None]]:
    yield check_documented
    yield check_plan
    yield check_deterministic
    yield check_teacher_unchanged
    if tags.fewer_parameters:
        yield check_rising_cost
    yield check_ends_with_the_teacher
    yield check_contract
    yield check_built_alike
    yield check_origins
    yield check_written_down
    yield check_rebuilt
    yield check_trainable
    yield check_exportable


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


def check_deterministic(derivation: Derivation, tags: StudentTags) -> None:
    """The same teacher and data give the same edits, again and whatever the random state."""
    written = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            plan = _plan(derivation, tags)
            written.append([plan.edit(place).model_dump_json() for place in _places(plan)])
    require(written[0] == written[1], f"a second plan has other edits: {written[1]} instead of {written[0]}")


def check_teacher_unchanged(derivation: Derivation, tags: StudentTags) -> None:
    """Planning leaves the teacher's structure, weights and modes as they are, and no gradients behind."""
    teacher, inputs = _tried(tags)
    before = copy.deepcopy(teacher)
    plan = _planned(derivation, teacher, inputs, tags)
    for place in _places(plan):
        plan.edit(place)
    require(str(teacher) == str(before), "its modules are others now")
    require(_same(teacher, before), "its weights are others now")
    modes = [[module.training for module in model.modules()] for model in (teacher, before)]
    require(modes[0] == modes[1], "modules changed between training and evaluation mode")
    left = [name for name, parameter in teacher.named_parameters() if parameter.grad is not None]
    require(not left, f"{left[:3]} have a gradient now, which the student would begin with; use torch.autograd.grad")


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


def check_rebuilt(derivation: Derivation, tags: StudentTags) -> None:
    """A student that is built from its edit, as it was written down, and loads the weights gives the same outputs."""
    plan, (_, inputs) = _plan(derivation, tags), _tried(tags)
    for place in _places(plan):
        edit = plan.edit(place)
        student, _ = _derived(edit, tags)
        again = _built(type(edit).model_validate_json(edit.model_dump_json()), tags)
        again.load_state_dict(student.state_dict())
        found, wanted = _outputs(again, inputs), _outputs(student, inputs)
        same = len(found) == len(wanted) and all(map(torch.equal, found, wanted))
        require(same, f"at place {place} of {plan.settings} the rebuilt student gives other outputs")


def check_trainable(derivation: Derivation, tags: StudentTags) -> None:
    """Every parameter of a student gets a finite gradient, except those that the tags say are frozen."""
    plan, (_, inputs) = _plan(derivation, tags), _tried(tags)
    for place in _places(plan):
        student = _derived(plan.edit(place), tags)[0].train()
        with torch.random.fork_rng(devices=[]):
            outputs = [each for each in tensors_in(call(student, inputs)) if each.is_floating_point()]
        moving = sum((each.square().sum() for each in outputs), torch.zeros(()))
        require(moving.requires_grad, f"at place {place} no output depends on a parameter that is trained")
        moving.backward()  # type: ignore[no-untyped-call]
        for name, parameter in student.named_parameters():
            frozen = any(fnmatchcase(name, pattern) for pattern in tags.frozen)
            if frozen:
                require(not parameter.requires_grad, f"at place {place} {name!r} is trained, and the tags say frozen")
            elif parameter.grad is None:
                why = (
                    "no output depends on it" if parameter.requires_grad else "it is frozen, and the tags do not say so"
                )
                fail(f"at place {place} {name!r} gets no gradient: {why}")
            else:
                finite = bool(parameter.grad.isfinite().all())
                require(finite, f"at place {place} the gradient of {name!r} is not finite")


def check_exportable(derivation: Derivation, tags: StudentTags) -> None:
    """The smallest student, rebuilt with its weights and run once in training, is exported by ``torch.export``."""
    edit, (_, inputs) = _plan(derivation, tags).edit(0), _tried(tags)
    student = _built(edit, tags)
    student.load_state_dict(_derived(edit, tags)[0].state_dict())
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        call(student.train(), inputs)  # what is measured while training is there, as ranges and statistics
    student.eval()
    arguments = tuple(inputs) if isinstance(inputs, tuple | list) else () if isinstance(inputs, Mapping) else (inputs,)
    keywords = dict(inputs) if isinstance(inputs, Mapping) else {}
    try:
        with torch.no_grad():
            program = torch.export.export(student, arguments, keywords, strict=False)
            found = tensors_in(program.module()(*arguments, **keywords))
    except Exception as error:
        fail(f"torch.export cannot take it: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
    for one, other in zip(found, _outputs(student, inputs), strict=True):
        require(torch.allclose(one, other, rtol=1e-5, atol=1e-6), "the exported student gives other outputs")


def _outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    with evaluating(model), torch.no_grad():
        return list(tensors_in(call(model, inputs)))


def _tried(tags: StudentTags) -> tuple[nn.Module, Any]:
    """The teacher, the same every time, and an example of what it takes."""
    teacher = tags.teacher() if tags.teacher is not None else toy_teacher()
    drawn = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return teacher, drawn if tags.inputs is None else tags.inputs


def _plan(derivation: Derivation, tags: StudentTags) -> Plan:
    return _planned(derivation, *_tried(tags), tags)


def _planned(derivation: Derivation, teacher: nn.Module, inputs: Any, tags: StudentTags) -> Plan:
    planning: Callable[..., Plan] = derivation.plan
    if not derivation.needs_data:
        return planning(teacher, inputs)
    require(
        tags.data is not None or tags.teacher is None, "it needs data: give batches for this teacher in StudentTags"
    )
    batches = toy_batches() if tags.data is None else tags.data
    task = default_plugins().make("task", "classification") if tags.task is None else tags.task
    return planning(teacher, inputs, StudentData(batches, task=task, validation=batches))


def _places(plan: Plan) -> list[int]:
    """The first, a middle and the last setting."""
    return sorted({0, plan.settings // 2, plan.settings - 1})


def _built(edit: Edit, tags: StudentTags) -> nn.Module:
    model, _ = _tried(tags)
    edit.build(model)
    return model


def _derived(edit: Edit, tags: StudentTags) -> tuple[nn.Module, dict[str, Any]]:
    model, inputs = _tried(tags)
    model.requires_grad_()  # as derive() does
    return model, edit.derive(model, inputs)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _same(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
