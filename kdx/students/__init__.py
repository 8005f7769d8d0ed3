"""Students derived from their teacher: narrower, shallower, depth-wise separable or of low rank."""

from kdx.students.config import StudentConfig, build, read_config
from kdx.students.contract import Contract
from kdx.students.depth import Depth
from kdx.students.depthwise import Depthwise
from kdx.students.deriving import HOWS, Derived, derive, inherit
from kdx.students.edit import Edit, Origin
from kdx.students.low_rank import LowRank
from kdx.students.width import Width

__all__ = [
    "HOWS",
    "Contract",
    "Depth",
    "Depthwise",
    "Derived",
    "Edit",
    "LowRank",
    "Origin",
    "StudentConfig",
    "Width",
    "build",
    "derive",
    "inherit",
    "read_config",
]
