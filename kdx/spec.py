"""A component that is not imported yet."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Spec"]


@dataclass(frozen=True, slots=True)
class Spec:
    """One component, not yet imported.

    Args:
        name: kebab-case name, unique within its kind.
        target: ``"package.module:Class"``, imported when the component is used.
        summary: one line for ``kdx list``.
        paper: where the method comes from, with year, or None.

    Raises:
        TypeError: one of the first three is no string.
    """

    name: str
    target: str
    summary: str
    paper: str | None = None

    def __post_init__(self) -> None:
        for field, form in (("name", ""), ("target", " as 'package.module:Class'"), ("summary", "")):
            if not isinstance(value := getattr(self, field), str):
                raise TypeError(f"Spec: {field} must be a string{form}, got {value!r}")
