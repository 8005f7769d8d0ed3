"""The conformance kit catches what it is for: every check has a component with one defect that only it is about."""

from __future__ import annotations

import pytest

import kdx
from kdx.testing import (
    CheckFailed,
    KnowledgeTags,
    check_assistant,
    check_knowledge,
    check_scheme,
    check_student,
    check_task,
    checks_of,
    parametrize_checks,
)
from tests.testing.mutants import assistant, knowledge, scheme, student, task

VECTORS = KnowledgeTags(student_shapes={"a": (6,)}, teacher_shapes={"b": (6,), "c": (6,)})


def named(checks, name):
    return next(check for check in checks if check.name == name)


def test_a_sound_component_passes_everything() -> None:
    check_knowledge(knowledge.Sound(), tags=VECTORS)
    check_assistant(assistant.Plan())
    check_scheme(scheme.Pair())
    check_task(task.Sound())
    check_student(student.Sound())


@pytest.mark.parametrize("mutant", knowledge.MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_defect_of_a_knowledge_component_is_caught(mutant) -> None:
    check = named(checks_of(mutant(), tags=VECTORS), mutant.caught_by)
    with pytest.raises(CheckFailed, match=f"{mutant.__name__} fails the check '{mutant.caught_by}'") as caught:
        check()
    assert ("': it raised" in str(caught.value)) == (mutant is knowledge.BreaksTheGraph), "caught for another reason"


@pytest.mark.parametrize("mutant", assistant.MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_defect_of_an_assistant_is_caught(mutant) -> None:
    with pytest.raises(CheckFailed) as caught:
        check_assistant(mutant())
    assert [line for line in str(caught.value).splitlines() if "fails the check" in line] == [
        line for line in str(caught.value).splitlines() if f"fails the check '{mutant.caught_by}'" in line
    ]


@pytest.mark.parametrize("mutant", scheme.MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_defect_of_a_scheme_is_caught(mutant) -> None:
    with pytest.raises(CheckFailed, match=f"{mutant.__name__} fails the check '{mutant.caught_by}'") as caught:
        named(checks_of(mutant()), mutant.caught_by)()
    assert "': it raised" not in str(caught.value), "caught for another reason"


@pytest.mark.parametrize("mutant", task.MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_defect_of_a_task_is_caught(mutant) -> None:
    with pytest.raises(CheckFailed, match=f"{mutant.__name__} fails the check '{mutant.caught_by}'") as caught:
        named(checks_of(mutant()), mutant.caught_by)()
    assert "': it raised" not in str(caught.value), "caught for another reason"


@pytest.mark.parametrize("mutant", student.MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_defect_of_a_derivation_is_caught(mutant) -> None:
    with pytest.raises(CheckFailed, match=f"{mutant.__name__} fails the check '{mutant.caught_by}'") as caught:
        named(checks_of(mutant()), mutant.caught_by)()
    assert "': it raised" not in str(caught.value), "caught for another reason"


def test_every_check_has_a_mutant() -> None:
    for checks, broken in (
        (
            [
                *checks_of(knowledge.NotZeroWhenEqual(), tags=VECTORS),
                named(checks_of(knowledge.LastAxisIsClasses()), "dense_logits"),
            ],
            knowledge.MUTANTS,
        ),
        (checks_of(assistant.Plan()), assistant.MUTANTS),
        (checks_of(scheme.Pair()), scheme.MUTANTS),
        (checks_of(task.Sound()), task.MUTANTS),
        (checks_of(student.Sound()), student.MUTANTS),
    ):
        assert {check.name for check in checks} == {mutant.caught_by for mutant in broken}
        assert all(check.sentence.endswith(".") for check in checks)


def test_all_failures_are_reported_at_once_and_named() -> None:
    class Two(knowledge.Detached):  # no docstring of its own, and no gradient
        pass

    with pytest.raises(CheckFailed) as caught:
        check_knowledge(Two(), tags=VECTORS)
    for name in ("documented", "gradient_reaches_the_student"):
        assert f"Two fails the check '{name}'" in str(caught.value)
    assert "expected: Every feature of the student" in str(caught.value)


def test_an_expected_failure_needs_a_reason_and_is_an_error_once_it_passes() -> None:
    reason = {"documented": "written when the paper is out"}
    check_knowledge(knowledge.Undocumented(), tags=VECTORS, expected_failures=reason)
    with pytest.raises(CheckFailed, match=r"Sound passes the check 'documented', which was expected to fail \(written"):
        check_knowledge(knowledge.Sound(), tags=VECTORS, expected_failures=reason)
    with pytest.raises(ValueError, match=r"expected_failures\['documented'\]: expected a reason, got ''"):
        check_knowledge(knowledge.Undocumented(), tags=VECTORS, expected_failures={"documented": ""})
    with pytest.raises(ValueError, match="no check 'document' of Undocumented; did you mean 'documented'"):
        check_knowledge(knowledge.Undocumented(), tags=VECTORS, expected_failures={"document": "later"})


def test_parametrize_checks_gives_ids_and_strict_marks() -> None:
    mark = parametrize_checks(kdx.SoftTargets(), expected_failures={"compiles": "a reason"})
    assert mark.name == "parametrize"
    names, parameters = mark.args
    assert names == "check"
    ids = {parameter.id: parameter for parameter in parameters}
    assert list(ids)[:2] == ["documented", "copies"]
    (xfail,) = ids["compiles"].marks
    assert (xfail.name, xfail.kwargs["strict"], xfail.kwargs["reason"]) == ("xfail", True, "a reason")
    assert not ids["copies"].marks


def test_tags_come_from_attributes_and_arguments_count_more() -> None:
    class Zero(kdx.SoftTargets):
        zero_when_equal = True

    def names(component, tags=None):
        return {check.name for check in checks_of(component, tags=tags)}

    assert "zero_when_equal" in names(Zero())
    assert "zero_when_equal" not in names(Zero(), KnowledgeTags(zero_when_equal=False))
    assert "zero_when_equal" not in names(kdx.SoftTargets())
    assert "batch_order" not in names(kdx.SoftTargets(), KnowledgeTags(batch_order_invariant=False))


@pytest.mark.parametrize("obj", [kdx.SoftTargets, 3, None], ids=str)
def test_what_has_no_checks_is_refused(obj) -> None:
    with pytest.raises(TypeError, match=r"obj: expected an instance of kdx\.Knowledge"):
        checks_of(obj)
    with pytest.raises(TypeError, match="give an object of it"):
        check_knowledge(obj)


def test_checking_leaves_the_component_and_the_random_state_alone() -> None:
    import torch

    component = knowledge.Sound()
    before = torch.get_rng_state()
    check_knowledge(component, tags=VECTORS)
    assert component.layer is None
    assert torch.get_rng_state().equal(before)
