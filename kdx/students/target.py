"""How large a student may be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

__all__ = ["Target", "parse_target"]

Kind = Literal["params", "flops", "latency"]
_TEXT = re.compile(r"\s*(?P<number>[0-9_]*\.?[0-9]+)\s*(?P<unit>%|k|M|G|ms)?\s*")
_UNIT = {None: 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "ms": 1.0}


@dataclass(frozen=True, slots=True)
class Target:
    """The most that a student may cost.

    Args:
        kind: ``params``, ``flops`` or ``latency`` (milliseconds).
        share: of what the teacher costs, or None.
        most: absolute, or None.
    """

    kind: Kind
    share: float | None
    most: float | None

    def budget(self, teacher: float) -> float:
        """The most in the unit of the teacher's cost."""
        return self.share * teacher if self.share is not None else float(self.most or 0.0)


def parse_target(kind: Kind, value: str | float) -> Target:
    """Reads ``"25%"``, ``0.25`` (a share), ``60000``, ``"60k"``, ``"1.5M"``, ``"2G"`` or ``"2.5ms"``.

    Raises:
        ValueError: anything else.

    Example:
        >>> parse_target("params", "25%").budget(1000), parse_target("flops", "1.5M").budget(0)
        (250.0, 1500000.0)
    """
    wrong = ValueError(
        f"{kind} must be a share of the teacher as '25%' or 0.25, or an amount as "
        f"{'2.5ms' if kind == 'latency' else '60000, 60k or 1.5M'}; got {value!r}"
    )
    if isinstance(value, bool):
        raise wrong
    if isinstance(value, float | int):
        share, most = (value, None) if isinstance(value, float) and value <= 1 else (None, float(value))
    else:
        found = _TEXT.fullmatch(value)
        if found is None or (found["unit"] == "ms") != (kind == "latency" and found["unit"] != "%"):
            raise wrong
        number = float(found["number"].replace("_", ""))
        share, most = (number / 100, None) if found["unit"] == "%" else (None, number * _UNIT[found["unit"]])
    if not (0 < share <= 1 if share is not None else most is not None and most > 0):
        raise wrong
    return Target(kind, share, most)
