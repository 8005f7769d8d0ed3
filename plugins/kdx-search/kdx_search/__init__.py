"""Students searched for under the teacher's guidance: weight-sharing supernets and joint search.

Importing the package imports neither torch nor optuna; every name is loaded from its module when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdx.lazy import exports

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
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "kdx_search.assistant": ["FromSupernet"],
            "kdx_search.best": ["Found", "Judged", "best_choice"],
            "kdx_search.blockwise": ["BlockWise"],
            "kdx_search.calibration": ["recalibrate"],
            "kdx_search.joint": ["search"],
            "kdx_search.kernel": ["ByKernel", "Kernel"],
            "kdx_search.rank_agreement": ["Agreement", "agreement"],
            "kdx_search.space": ["Space"],
            "kdx_search.sub_network": ["SubNetwork"],
            "kdx_search.supernet": ["Supernet"],
            "kdx_search.weighted_soft_targets": ["WeightedSoftTargets"],
        },
    )
