"""The names by which a plan refers to the models of its stages."""

from __future__ import annotations

__all__ = ["split_name"]


def split_name(name: str) -> tuple[str, str | None]:
    """The stage and the model in it that a name stands for; None for the model that the stage is about, its student.

    Example:
        >>> split_name("co-studying:teacher"), split_name("teacher")
        (('co-studying', 'teacher'), ('teacher', None))
    """
    stage, colon, model = name.partition(":")
    return stage, model if colon else None
