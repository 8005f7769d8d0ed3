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
