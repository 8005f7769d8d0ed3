"""Fused distillation losses: one signature per op, several backends behind it.

Every module and folder in here is private, so that a name like ``kdx.ops.softmax_kl`` is the op and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdx.lazy import exports

if TYPE_CHECKING:
    from kdx.ops._declarations import BACKENDS as BACKENDS
    from kdx.ops._declarations import OPS as OPS
    from kdx.ops._declarations import Op as Op
    from kdx.ops._dispatch import Explanation as Explanation
    from kdx.ops._dispatch import backends as backends
    from kdx.ops._dispatch import explain as explain
    from kdx.ops._dispatch import plugin_backends as plugin_backends
    from kdx.ops._dispatch import select as select
    from kdx.ops._linear_kl.api import linear_kl as linear_kl
    from kdx.ops._linear_kl.stats import Stats as Stats
    from kdx.ops._native import build_info as build_info
    from kdx.ops._pairwise_sq_dist.api import pairwise_sq_dist as pairwise_sq_dist
    from kdx.ops._rkd.api import rkd as rkd
    from kdx.ops._rkd.api import rkd_angle as rkd_angle
    from kdx.ops._rkd.api import rkd_distance as rkd_distance
    from kdx.ops._softmax_kl.api import kd_loss as kd_loss
    from kdx.ops._softmax_kl.api import softmax_kl as softmax_kl
    from kdx.ops._topk_kl.api import topk_kl as topk_kl
    from kdx.ops._topk_kl.targets import SparseTargets as SparseTargets
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "kdx.ops._declarations": ["BACKENDS", "OPS", "Op"],
            "kdx.ops._dispatch": ["Explanation", "backends", "explain", "plugin_backends", "select"],
            "kdx.ops._linear_kl.api": ["linear_kl"],
            "kdx.ops._linear_kl.stats": ["Stats"],
            "kdx.ops._native": ["build_info"],
            "kdx.ops._pairwise_sq_dist.api": ["pairwise_sq_dist"],
            "kdx.ops._rkd.api": ["rkd", "rkd_angle", "rkd_distance"],
            "kdx.ops._softmax_kl.api": ["kd_loss", "softmax_kl"],
            "kdx.ops._topk_kl.api": ["topk_kl"],
            "kdx.ops._topk_kl.targets": ["SparseTargets"],
        },
    )
