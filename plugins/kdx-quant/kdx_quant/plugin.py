"""The hooks of this package; it imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from kdx import Spec, hookimpl

_QKD = "Kim et al. 2019, arXiv:1911.12491"


@hookimpl
def kdx_students() -> Iterable[Spec]:
    """The derivations ``quantise`` and ``store-int8``."""
    return [
        Spec(
            "quantise",
            "kdx_quant.quantise:ByQuantise",
            "weights and activations of few bits, rounded in training as in the exported file",
            "Jacob et al. 2018, arXiv:1712.05877; learned steps: Esser et al. 2020, arXiv:1902.08153",
        ),
        Spec("store-int8", "kdx_quant.store:ByStore", "weights held as int8, for a teacher that is not trained"),
    ]


@hookimpl
def kdx_schemes() -> Iterable[Spec]:
    """The scheme ``co-studying``."""
    return [
        Spec(
            "co-studying",
            "kdx_quant.co_studying:CoStudying",
            "a trained teacher and a quantised student learn from each other",
            _QKD,
        )
    ]


@hookimpl
def kdx_assistants() -> Iterable[Spec]:
    """The assistants ``qkd`` and ``int8-teacher``."""
    return [
        Spec("qkd", "kdx_quant.qkd:QKD", "a quantised student studies alone, with its teacher, and is tutored", _QKD),
        Spec("int8-teacher", "kdx_quant.store:StoredTeacher", "the trained teacher is held as int8 and teaches so"),
    ]
