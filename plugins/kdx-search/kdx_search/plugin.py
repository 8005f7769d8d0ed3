"""The hooks of this package; it imports no torch, and neither optuna nor scipy before they are used."""

from __future__ import annotations

from collections.abc import Iterable

from kdx import Spec, hookimpl


@hookimpl
def kdx_assistants() -> Iterable[Spec]:
    """Plans in which a student is searched for."""
    return [
        Spec(
            "from-supernet",
            "kdx_search.assistant:FromSupernet",
            "train all sub-networks of the student at once, choose one within a budget, distil it",
            "Cai et al. 2020, arXiv:1908.09791",
        )
    ]


@hookimpl
def kdx_schemes() -> Iterable[Spec]:
    """Schemes that train many students on shared weights."""
    return [
        Spec(
            "block-wise",
            "kdx_search.blockwise:BlockWise",
            "every block of all sub-networks learns the teacher's block, to rank them",
            "Li et al. 2020, arXiv:1911.13053",
        ),
        Spec(
            "supernet",
            "kdx_search.supernet:Supernet",
            "one set of weights for all sub-networks of the student; the teacher guides the largest",
            "Yu & Huang 2019, arXiv:1903.05134",
        ),
    ]


@hookimpl
def kdx_students() -> Iterable[Spec]:
    """The derivation ``kernel``, which the sub-networks of a supernet need beside those of kdx."""
    return [
        Spec(
            "kernel",
            "kdx_search.kernel:ByKernel",
            "smaller windows of convolutions: the centre of the teacher's",
            "Cai et al. 2020, arXiv:1908.09791",
        )
    ]


@hookimpl
def kdx_knowledge() -> Iterable[Spec]:
    """Transfer that follows the gap between student and teacher."""
    return [
        Spec(
            "weighted-soft-targets",
            "kdx_search.weighted_soft_targets:WeightedSoftTargets",
            "soft targets, weighted on each sample by how far the student is behind",
            "Zhou et al. 2021, arXiv:2102.00650",
        )
    ]


@hookimpl
def kdx_commands() -> Iterable[Spec]:
    """The command ``kdx search``."""
    return [Spec("search", "kdx_search.cli:app", "Search structure and transfer of a student together.")]
