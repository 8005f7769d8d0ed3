"""The hooks of this package; it imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from kdx import Spec, hookimpl


@hookimpl
def kdx_knowledge() -> Iterable[Spec]:
    """The knowledge component ``mgd``."""
    return [
        Spec(
            "mgd",
            "kdx_mgd.mgd:MGD",
            "generate the teacher's feature from a masked student feature",
            "Yang et al. 2022, arXiv:2205.01529",
        )
    ]
