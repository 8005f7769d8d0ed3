"""The hooks of this package; it imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from kdx import Spec, hookimpl


@hookimpl
def kdx_students() -> Iterable[Spec]:
    """The derivation ``quantise``."""
    return [
        Spec(
            "quantise",
            "kdx_quant.quantise:ByQuantise",
            "weights and activations of few bits, rounded in training as in the exported file",
            "Jacob et al. 2018, arXiv:1712.05877; learned steps: Esser et al. 2020, arXiv:1902.08153",
        )
    ]
