"""A derived student beside its teacher, in text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdx.analysis.cost import Cost
from kdx.analysis.costs import cost_table
from kdx.students.edit import Kept, Origin

__all__ = ["table"]


def table(teacher: Cost, student: Cost, origins: Mapping[str, Origin], kept: Sequence[Kept]) -> str:
    """Costs of both, where every weight that was not copied whole comes from, and what stayed as it is."""
    costs = cost_table({"teacher": teacher.as_dict(), "student": student.as_dict()}, shares=True)
    weights = [["weight", "from the teacher's", "teacher", "student", "lost"]]
    weights += [
        [name, origin.how, _shape(origin.teacher_shape), _shape(origin.shape), _percent(origin.error)]
        for name, origin in origins.items()
        if origin.how != "copied"
    ]
    copied = sum(origin.how == "copied" for origin in origins.values())
    parts = [costs]
    if len(weights) > 1:
        parts.append("\n".join(_lines(weights)))
    parts.append(f"{copied} of {len(origins)} tensors copied whole")
    if kept:
        parts.append("\n".join(["kept as they are:", *(f"  {item.module}: {item.reason}" for item in kept)]))
    return "\n\n".join(parts)


def _lines(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _percent(error: float | None) -> str:
    return "" if error is None else f"{error:.1%}"
