"""Students searched for under the teacher's guidance: weight-sharing supernets and joint search.

Importing the package imports neither torch nor optuna; every name is loaded from its module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdx_search.assistant import FromSupernet as FromSupernet
    from kdx_search.best import Found as Found
    from kdx_search.best import Judged as Judged
    from kdx_search.best import best_choice as best_choice
    from kdx_search.blockwise import BlockWise as BlockWise
    from kdx_search.calibration import recalibrate as recalibrate
    from kdx_search.joint import search as search
    from kdx_search.kernel import ByKernel as ByKernel
    from kdx_search.kernel import Kernel as Kernel
    from kdx_search.rank_agreement import Agreement as Agreement
    from kdx_search.rank_agreement import agreement as agreement
    from kdx_search.space import Space as Space
    from kdx_search.sub_network import SubNetwork as SubNetwork
    from kdx_search.supernet import Supernet as Supernet
    from kdx_search.weighted_soft_targets import WeightedSoftTargets as WeightedSoftTargets

_HOMES = {
    "Agreement": "rank_agreement",
    "agreement": "rank_agreement",
    "best_choice": "best",
    "BlockWise": "blockwise",
    "ByKernel": "kernel",
    "Found": "best",
    "FromSupernet": "assistant",
    "Judged": "best",
    "Kernel": "kernel",
    "recalibrate": "calibration",
    "search": "joint",
    "Space": "space",
    "SubNetwork": "sub_network",
    "Supernet": "supernet",
    "WeightedSoftTargets": "weighted_soft_targets",
}
"""Name -> the module that defines it."""
__all__ = sorted(_HOMES)  # noqa: PLE0605  # of the table, so that no name is written twice


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
