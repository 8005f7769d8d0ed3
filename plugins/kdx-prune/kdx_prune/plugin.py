"""The hooks of this package; it imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from kdx import Spec, hookimpl


@hookimpl
def kdx_students() -> Iterable[Spec]:
    """Ways of pruning."""
    return [
        Spec(
            "prune",
            "kdx_prune.channels:ByImportance",
            "fewer channels, the least important ones gone: by norm, activation, task loss or distillation loss",
            "Molchanov et al. 2019, arXiv:1906.10771",
        ),
    ]
