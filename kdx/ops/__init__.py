"""Fused distillation losses: one signature per op, several backends behind it.

Importing this package imports no torch; the first use of an op does.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdx.ops._dispatch import (
        Explanation,
        backends,
        explain,
        plugin_backends,
        register_backend,
        select,
    )
    from kdx.ops._native import build_info
    from kdx.ops.pairwise_sq_dist import pairwise_sq_dist
    from kdx.ops.rkd import rkd, rkd_angle, rkd_distance
    from kdx.ops.softmax_kl import kd_loss, softmax_kl

__all__ = [
    "Explanation",
    "backends",
    "build_info",
    "explain",
    "kd_loss",
    "pairwise_sq_dist",
    "plugin_backends",
    "register_backend",
    "rkd",
    "rkd_angle",
    "rkd_distance",
    "select",
    "softmax_kl",
]

_LAZY = {
    "Explanation": "kdx.ops._dispatch",
    "backends": "kdx.ops._dispatch",
    "build_info": "kdx.ops._native",
    "explain": "kdx.ops._dispatch",
    "kd_loss": "kdx.ops.softmax_kl.api",
    "pairwise_sq_dist": "kdx.ops.pairwise_sq_dist.api",
    "plugin_backends": "kdx.ops._dispatch",
    "register_backend": "kdx.ops._dispatch",
    "select": "kdx.ops._dispatch",
    "rkd": "kdx.ops.rkd.api",
    "rkd_angle": "kdx.ops.rkd.api",
    "rkd_distance": "kdx.ops.rkd.api",
    "softmax_kl": "kdx.ops.softmax_kl.api",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


class _Ops(ModuleType):
    """This package. An op and the folder of its backends share their name; as an attribute the name is the op."""

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing the folder kdx.ops.softmax_kl would bind it to the name; `from kdx.ops.softmax_kl import cpu` works.
        if not (name in _LAZY and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Ops


def __dir__() -> list[str]:
    return sorted(__all__)
