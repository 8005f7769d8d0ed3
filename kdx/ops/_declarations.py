"""The ops of kdx, each declared once.

The table of backends, :func:`kdx.ops.explain`, ``kdx list op``, the benchmarks, the tests and the documentation read
these declarations, and importing them imports no torch. ``docs/kernels/adding-an-op.md`` adds one, step by step.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BACKENDS", "OPS", "Op"]

BACKENDS = ("cuda", "triton", "cpu", "reference")
"""The backends of kdx's own ops, in the order in which ``auto`` asks them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """An op of kdx.

    Args:
        name: as in ``kdx.ops.<name>``.
        summary: one line, in lower case and without a full stop.
        paper: where it comes from, or None.
        family: the op whose folder ``kdx/ops/_<family>/`` it lives in and whose backends it runs on; None is its own.
        benchmark: whether there is a ``bench/ops/<name>.py``.

    Example:
        >>> OPS["kd_loss"].target
        'kdx.ops._softmax_kl.api:kd_loss'
        >>> OPS["kd_loss"].module("cpu")
        'kdx.ops._softmax_kl.cpu'
    """

    name: str
    summary: str
    paper: str | None = None
    family: str | None = None
    benchmark: bool = False

    @property
    def folder(self) -> str:
        """The package of the op's modules."""
        return f"kdx.ops._{self.family or self.name}"

    @property
    def target(self) -> str:
        """Where the function is that a user calls, as ``"module:name"``."""
        return f"{self.folder}.api:{self.name}"

    def module(self, backend: str) -> str:
        """The module of a backend, which defines ``unsupported`` and ``forward``."""
        return f"{self.folder}.{backend}"


_HINTON = "Hinton et al. 2015, arXiv:1503.02531"
_PARK = "Park et al. 2019, arXiv:1904.05068"

OPS = {
    op.name: op
    for op in (
        Op(name="softmax_kl", summary="KL or JSD between tempered softmaxes", paper=_HINTON, benchmark=True),
        Op(
            name="kd_loss",
            summary="soft targets and cross-entropy in one pass",
            paper=_HINTON,
            family="softmax_kl",
        ),
        Op(
            name="linear_kl",
            summary="soft targets and cross-entropy from hidden states, in chunks of logits",
            paper=_HINTON,
            benchmark=True,
        ),
        Op(name="topk_kl", summary="soft targets of a few classes of the teacher's", paper=_HINTON, benchmark=True),
        Op(name="rkd", summary="relational losses of distances and angles together", paper=_PARK),
        Op(
            name="rkd_distance",
            summary="relational loss of the distances between pairs",
            paper=_PARK,
            family="rkd",
            benchmark=True,
        ),
        Op(
            name="rkd_angle",
            summary="relational loss of the angles in triples",
            paper=_PARK,
            family="rkd",
            benchmark=True,
        ),
        Op(name="pairwise_sq_dist", summary="squared distances of all pairs"),
    )
}
"""Name -> declaration of every op of kdx."""
