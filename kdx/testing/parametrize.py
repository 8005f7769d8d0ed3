"""One pytest id per check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from kdx.assistants.base import Assistant
from kdx.knowledge.base import Knowledge
from kdx.registry import default_plugins
from kdx.schemes.base import Scheme
from kdx.students.derivation import Derivation
from kdx.tasks.base import Task
from kdx.testing.assistant import assistant_checks
from kdx.testing.check import Check, CheckFailed
from kdx.testing.knowledge import knowledge_checks
from kdx.testing.op import op_checks
from kdx.testing.plugin import plugin_checks
from kdx.testing.scheme import scheme_checks
from kdx.testing.student import student_checks
from kdx.testing.task import task_checks

__all__ = ["checks_of", "parametrize_checks"]


def checks_of(
    obj: Any,
    *,
    tags: Any = None,
    backend: str | None = None,
    device: str = "cpu",
    expected_failures: Mapping[str, str] | None = None,
) -> list[Check]:
    """The checks that apply to an object, of whatever kind.

    Args:
        obj: a knowledge component, a scheme, an assistant, a task, a derivation of students, the name of an op, a
            plugin's module or the name of its entry point.
        tags: what it declares about itself, of the tags class of its kind.
        backend: of an op, ``"auto"`` if not given.
        device: of an op.
        expected_failures: check name -> why it is known not to hold.

    Raises:
        TypeError: there are no checks for such an object, or its kind has no tags.
        ValueError: an expected failure names no check.

    Example:
        >>> import kdx
        >>> [check.name for check in checks_of(kdx.SoftTargets())][:3]
        ['documented', 'copies', 'pickles']
    """
    tagged: tuple[tuple[type, Callable[..., list[Check]]], ...] = (
        (Knowledge, knowledge_checks),
        (Scheme, scheme_checks),
        (Task, task_checks),
        (Derivation, student_checks),
    )
    for base, checks in tagged:
        if isinstance(obj, base):
            return checks(obj, tags=tags, expected_failures=expected_failures)
    if isinstance(obj, str) and (backend is not None or obj in default_plugins().components("op")):
        return op_checks(obj, backend=backend or "auto", device=device, tags=tags, expected_failures=expected_failures)
    if tags is not None:
        raise TypeError(f"tags: there are none for {type(obj).__name__}, got {tags!r}")
    if isinstance(obj, Assistant):
        return assistant_checks(obj, expected_failures=expected_failures)
    if isinstance(obj, str | ModuleType):
        return plugin_checks(obj, expected_failures=expected_failures)
    raise TypeError(
        "obj: expected an instance of kdx.Knowledge, kdx.Scheme, kdx.Assistant, kdx.Task or kdx.students.Derivation, "
        f"the name of an op, a plugin's module or the name of its entry point; got {obj!r}"
    )


def parametrize_checks(
    obj: Any,
    *,
    tags: Any = None,
    backend: str | None = None,
    device: str = "cpu",
    expected_failures: Mapping[str, str] | None = None,
) -> Any:
    """A pytest mark that gives a test function the argument ``check``, once for each check of an object.

    An expected failure is a strict ``xfail``: a check that holds after all fails the test run.

    Args:
        obj: see :func:`checks_of`.
        tags: see :func:`checks_of`.
        backend: see :func:`checks_of`.
        device: see :func:`checks_of`.
        expected_failures: see :func:`checks_of`.

    Example:
        >>> import kdx
        >>> @parametrize_checks(kdx.SoftTargets())
        ... def test_conformance(check):
        ...     check()
    """
    import pytest

    parameters = []
    checks = checks_of(obj, tags=tags, backend=backend, device=device, expected_failures=expected_failures)
    for check in checks:
        reason = check.expected_failure
        marks = () if reason is None else (pytest.mark.xfail(reason=reason, raises=CheckFailed, strict=True),)
        parameters.append(pytest.param(check, id=check.name, marks=marks))
    return pytest.mark.parametrize("check", parameters)
