"""The hooks of this package; it imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from kdx import Spec, hookimpl


@hookimpl
def kdx_schemes() -> Iterable[Spec]:
    """The scheme ``function-matching``."""
    return [
        Spec(
            "function-matching",
            "kdx_function_matching.scheme:FunctionMatching",
            "teacher and student see the same mixed images, labels play no part",
            "Beyer et al. 2022, arXiv:2106.05237",
        )
    ]
