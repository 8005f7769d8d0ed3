"""kdx's own components, registered through the same hooks as anyone's."""

from __future__ import annotations

from collections.abc import Iterable

from kdx.hookspecs import Spec, hookimpl


@hookimpl
def kdx_knowledge() -> Iterable[Spec]:
    """Knowledge components of kdx."""
    return [
        Spec(
            "soft-targets",
            "kdx.knowledge.soft_targets:SoftTargets",
            "KL between temperature-softened class probabilities",
            "Hinton et al. 2015, arXiv:1503.02531",
        ),
        Spec(
            "hint",
            "kdx.knowledge.hint:Hint",
            "regress a teacher layer through a learned adapter (one stage)",
            "Romero et al. 2015, arXiv:1412.6550",
        ),
    ]


@hookimpl
def kdx_schemes() -> Iterable[Spec]:
    """Schemes of kdx."""
    return [
        Spec("supervised", "kdx.schemes.supervised:Supervised", "labels alone: a teacher, or the control"),
        Spec(
            "offline",
            "kdx.schemes.offline:Offline",
            "a trained, frozen teacher teaches a student",
            "Hinton et al. 2015, arXiv:1503.02531",
        ),
        Spec(
            "mutual",
            "kdx.schemes.mutual:Mutual",
            "peers teach each other, simultaneous updates",
            "Zhang et al. 2018, arXiv:1706.00384",
        ),
    ]


@hookimpl
def kdx_assistants() -> Iterable[Spec]:
    """Teacher assistants of kdx."""
    return []


@hookimpl
def kdx_models() -> Iterable[Spec]:
    """Models of kdx."""
    return []


@hookimpl
def kdx_datasets() -> Iterable[Spec]:
    """Data sets of kdx."""
    return []
