"""A check: one sentence that a component keeps or does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from kdx.errors import nearest

__all__ = ["Check", "CheckFailed", "bind", "fail", "require", "run_all"]


class CheckFailed(AssertionError):
    """A component does not keep what its kind promises; the message names the check and what it found."""


def fail(found: str) -> NoReturn:
    """Ends a check with what it found."""
    raise CheckFailed(found)


def require(holds: bool, found: str) -> None:
    """Ends a check with what it found unless ``holds``."""
    if not holds:
        fail(found)


@dataclass(frozen=True, slots=True)
class Check:
    """One check of one object; calling it runs it.

    Args:
        subject: what is checked, as messages name it.
        name: the check's name, also its id in pytest.
        sentence: what must hold.
        function: runs the check and raises where it does not hold.
        expected_failure: why it is known not to hold, or None.
    """

    subject: str
    name: str
    sentence: str
    function: Callable[[], None]
    expected_failure: str | None = None

    def __call__(self) -> None:
        """Runs the check.

        Raises:
            CheckFailed: it does not hold, or the component raised something.
        """
        try:
            self.function()
        except CheckFailed as failure:
            raise CheckFailed(self._message(str(failure))) from failure.__cause__
        except Exception as error:
            raise CheckFailed(self._message(f"it raised {type(error).__name__}: {error}")) from error

    def _message(self, found: str) -> str:
        return f"{self.subject} fails the check {self.name!r}: {found}\n  expected: {self.sentence}"


def bind(
    subject: str,
    functions: Iterable[Callable[..., None]],
    *arguments: object,
    expected_failures: Mapping[str, str] | None = None,
) -> list[Check]:
    """Checks of one object from functions ``check_<name>(*arguments)``, whose docstring is the sentence.

    Raises:
        ValueError: an expected failure names no check, or gives no reason.
    """
    named = {function.__name__.removeprefix("check_"): function for function in functions}
    expected = dict(expected_failures or {})
    for name, reason in expected.items():
        if name not in named:
            raise ValueError(f"expected_failures: there is no check {name!r} of {subject}; {nearest(name, named)}")
        if not isinstance(reason, str) or not reason.strip():
            raise ValueError(f"expected_failures[{name!r}]: expected a reason, got {reason!r}")

    def run(function: Callable[..., None]) -> Callable[[], None]:
        return lambda: function(*arguments)

    return [
        Check(subject, name, " ".join((function.__doc__ or "").split()), run(function), expected.get(name))
        for name, function in named.items()
    ]


def run_all(checks: Iterable[Check]) -> None:
    """Runs every check, also after one has failed.

    Raises:
        CheckFailed: some failed, or one passed that was expected to fail; the message holds them all.
    """
    found: list[str] = []
    first: CheckFailed | None = None
    for check in checks:
        try:
            check()
        except CheckFailed as failure:
            if check.expected_failure is None:
                found.append(str(failure))
                first = first or failure
        else:
            if check.expected_failure is not None:
                found.append(
                    f"{check.subject} passes the check {check.name!r}, which was expected to fail "
                    f"({check.expected_failure}); take it out of expected_failures"
                )
    if found:
        raise CheckFailed("\n".join(found)) from first
