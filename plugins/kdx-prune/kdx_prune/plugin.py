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
        Spec(
            "prune-blocks",
            "kdx_prune.blocks:ByBlocks",
            "fewer blocks, those gone without which the network stays most like its teacher (CKA)",
            "Pons et al. 2024, arXiv:2405.17081",
        ),
        Spec(
            "semi-structured",
            "kdx_prune.sparse:BySparsity",
            "n:m sparsity, 2:4 by default: of every m neighbouring weights n are kept, the others stay 0",
            "Mishra et al. 2021, arXiv:2104.08378",
        ),
    ]


@hookimpl
def kdx_models() -> Iterable[Spec]:
    """Students that are made when their stage begins."""
    return [
        Spec(
            "pruned", "kdx_prune.pruned:Pruned", "an earlier stage's model pruned in several ways, one after the other"
        )
    ]


@hookimpl
def kdx_assistants() -> Iterable[Spec]:
    """Pruning and distilling in turns."""
    return [
        Spec(
            "iterative-pruning",
            "kdx_prune.iterative:IterativePruning",
            "the teacher is pruned a little, distilled, pruned a little more, down to the student's size",
            "Molchanov et al. 2017, arXiv:1611.06440",
        ),
        Spec(
            "minitron",
            "kdx_prune.minitron:Minitron",
            "the teacher's depth and width pruned by activations in several shapes, the best one distilled",
            "Muralidharan et al. 2024, arXiv:2407.14679",
        ),
    ]
