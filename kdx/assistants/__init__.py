"""Teacher assistants: a distillation planned in stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdx.lazy import exports

if TYPE_CHECKING:
    from kdx.assistants.base import Assistant as Assistant
    from kdx.assistants.born_again import BornAgain as BornAgain
    from kdx.assistants.boundaries_then_distil import BoundariesThenDistil as BoundariesThenDistil
    from kdx.assistants.chain import DGKD as DGKD
    from kdx.assistants.chain import TAKD as TAKD
    from kdx.assistants.factor_transfer import FactorTransfer as FactorTransfer
    from kdx.assistants.gap import GapWarning as GapWarning
    from kdx.assistants.gap import NoGainWarning as NoGainWarning
    from kdx.assistants.gap import WeakTeacherWarning as WeakTeacherWarning
    from kdx.assistants.hint_then_distil import HintThenDistil as HintThenDistil
    from kdx.assistants.placement import ByAccuracy as ByAccuracy
    from kdx.assistants.placement import Ladder as Ladder
    from kdx.assistants.residual import ResidualKD as ResidualKD
    from kdx.stage import FinishedStages as FinishedStages
    from kdx.stage import Produced as Produced
    from kdx.stage import Structure as Structure
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "kdx.assistants.base": ["Assistant"],
            "kdx.assistants.born_again": ["BornAgain"],
            "kdx.assistants.boundaries_then_distil": ["BoundariesThenDistil"],
            "kdx.assistants.chain": ["DGKD", "TAKD"],
            "kdx.assistants.factor_transfer": ["FactorTransfer"],
            "kdx.assistants.gap": ["GapWarning", "NoGainWarning", "WeakTeacherWarning"],
            "kdx.assistants.hint_then_distil": ["HintThenDistil"],
            "kdx.assistants.placement": ["ByAccuracy", "Ladder"],
            "kdx.assistants.residual": ["ResidualKD"],
            "kdx.stage": ["FinishedStages", "Produced", "Structure"],
        },
    )
