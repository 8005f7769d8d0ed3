"""The hooks of this package; it imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from kdx import Spec, hookimpl


@hookimpl
def kdx_assistants() -> Iterable[Spec]:
    """The assistant ``early-stopped-teacher``."""
    return [
        Spec(
            "early-stopped-teacher",
            "kdx_eskd.assistant:EarlyStoppedTeacher",
            "the teacher is trained again, for fewer epochs, and that one teaches",
            "Cho, Hariharan 2019, arXiv:1910.01348",
        )
    ]
