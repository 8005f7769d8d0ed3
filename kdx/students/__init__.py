"""Students derived from their teacher: narrower, shallower, depth-wise separable or of low rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdx.lazy import exports

if TYPE_CHECKING:
    from kdx.errors import StudentError as StudentError
    from kdx.students.calls import Calls as Calls
    from kdx.students.calls import record_calls as record_calls
    from kdx.students.config import StudentConfig as StudentConfig
    from kdx.students.config import build as build
    from kdx.students.config import read_config as read_config
    from kdx.students.contract import Contract as Contract
    from kdx.students.depth import ByDepth as ByDepth
    from kdx.students.depth import Depth as Depth
    from kdx.students.depth import block_sequences as block_sequences
    from kdx.students.depthwise import ByDepthwise as ByDepthwise
    from kdx.students.depthwise import Depthwise as Depthwise
    from kdx.students.derivation import Derivation as Derivation
    from kdx.students.deriving import Derived as Derived
    from kdx.students.deriving import derive as derive
    from kdx.students.deriving import inherit as inherit
    from kdx.students.edit import Edit as Edit
    from kdx.students.edit import Kept as Kept
    from kdx.students.edit import Origin as Origin
    from kdx.students.edit import Plan as Plan
    from kdx.students.factors import is_tied as is_tied
    from kdx.students.factors import layer_at as layer_at
    from kdx.students.factors import own_code as own_code
    from kdx.students.from_recipe import DerivedStudent as DerivedStudent
    from kdx.students.groups import ChannelGroup as ChannelGroup
    from kdx.students.groups import channel_groups as channel_groups
    from kdx.students.low_rank import ByLowRank as ByLowRank
    from kdx.students.low_rank import LowRank as LowRank
    from kdx.students.narrowing import Narrowing as Narrowing
    from kdx.students.student_data import StudentData as StudentData
    from kdx.students.target import Target as Target
    from kdx.students.target import parse_target as parse_target
    from kdx.students.width import ByWidth as ByWidth
    from kdx.students.width import Width as Width
    from kdx.students.width import plan_width as plan_width
    from kdx.tap_aliases import alias_taps as alias_taps
    from kdx.tap_aliases import tap_exported as tap_exported
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "kdx.students.from_recipe": ["DerivedStudent"],
            "kdx.students.factors": ["is_tied", "layer_at", "own_code"],
            "kdx.errors": ["StudentError"],
            "kdx.students.calls": ["Calls", "record_calls"],
            "kdx.students.config": ["StudentConfig", "build", "read_config"],
            "kdx.students.contract": ["Contract"],
            "kdx.students.depth": ["ByDepth", "Depth", "block_sequences"],
            "kdx.students.depthwise": ["ByDepthwise", "Depthwise"],
            "kdx.students.derivation": ["Derivation"],
            "kdx.students.deriving": ["Derived", "derive", "inherit"],
            "kdx.students.edit": ["Edit", "Kept", "Origin", "Plan"],
            "kdx.students.groups": ["ChannelGroup", "channel_groups"],
            "kdx.students.low_rank": ["ByLowRank", "LowRank"],
            "kdx.students.narrowing": ["Narrowing"],
            "kdx.students.student_data": ["StudentData"],
            "kdx.students.target": ["Target", "parse_target"],
            "kdx.students.width": ["ByWidth", "Width", "plan_width"],
            "kdx.tap_aliases": ["alias_taps", "tap_exported"],
        },
    )
