"""Students derived from their teacher: narrower, shallower, depth-wise separable or of low rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdx.lazy import exports

if TYPE_CHECKING:
    from kdx.students.config import StudentConfig as StudentConfig
    from kdx.students.config import build as build
    from kdx.students.config import read_config as read_config
    from kdx.students.contract import Contract as Contract
    from kdx.students.depth import Depth as Depth
    from kdx.students.depthwise import Depthwise as Depthwise
    from kdx.students.deriving import HOWS as HOWS
    from kdx.students.deriving import Derived as Derived
    from kdx.students.deriving import derive as derive
    from kdx.students.deriving import inherit as inherit
    from kdx.students.edit import Edit as Edit
    from kdx.students.edit import Origin as Origin
    from kdx.students.low_rank import LowRank as LowRank
    from kdx.students.width import Width as Width
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "kdx.students.config": ["StudentConfig", "build", "read_config"],
            "kdx.students.contract": ["Contract"],
            "kdx.students.depth": ["Depth"],
            "kdx.students.depthwise": ["Depthwise"],
            "kdx.students.deriving": ["Derived", "HOWS", "derive", "inherit"],
            "kdx.students.edit": ["Edit", "Origin"],
            "kdx.students.low_rank": ["LowRank"],
            "kdx.students.width": ["Width"],
        },
    )
