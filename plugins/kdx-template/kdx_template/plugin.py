"""The hooks of this package. It imports no torch: components are import strings, loaded when they are used."""

from __future__ import annotations

from collections.abc import Iterable

from kdx import Spec, hookimpl


@hookimpl
def kdx_knowledge() -> Iterable[Spec]:
    """The knowledge component ``transformed-teacher``."""
    return [
        Spec(
            "transformed-teacher",
            "kdx_template.loss:TransformedTeacher",
            "match the sharp student with the softened teacher",
            "Zheng, Yang 2024, arXiv:2402.11148",
        )
    ]
