"""A derived student beside its teacher, in text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdx.analysis.cost import Cost
from kdx.students.edit import Kept, Origin

__all__ = ["table"]


def table(teacher: Cost, student: Cost, origins: Mapping[str, Origin], kept: Sequence[Kept]) -> str:
    """Costs of both, where every weight that was not copied whole comes from, and what stayed as it is."""
    rows = [["", "parameters", "FLOPs", "size", "latency (20-80 % spread)"]]
    for name, cost in (("teacher", teacher), ("student", student)):
        time = f"{cost.latency_ms:.3g} ms ({cost.latency_spread_ms:.2g})"
        size = "not counted" if cost.bytes is None else f"{cost.bytes / 1024:,.1f} KiB"
        rows.append([name, _count(cost.parameters), _count(cost.flops), size, time])
    pairs = [
        (student.parameters, teacher.parameters),
        (student.flops, teacher.flops),
        (student.bytes, teacher.bytes),
        (student.latency_ms, teacher.latency_ms),
    ]
    rows.append(["", *(f"{new / old:.1%}" if old and new is not None else "" for new, old in pairs)])
    weights = [["weight", "from the teacher's", "teacher", "student", "lost"]]
    weights += [
        [name, origin.how, _shape(origin.teacher_shape), _shape(origin.shape), _percent(origin.error)]
        for name, origin in origins.items()
        if origin.how != "copied"
    ]
    copied = sum(origin.how == "copied" for origin in origins.values())
    parts = ["\n".join(_lines(rows))]
    parts += [
        f"{name}: {', '.join(fields)} {reason}"
        for name, cost in (("teacher", teacher), ("student", student))
        for reason, fields in _by_reason(cost.uncounted).items()
    ]
    if len(weights) > 1:
        parts.append("\n".join(_lines(weights)))
    parts.append(f"{copied} of {len(origins)} tensors copied whole")
    if kept:
        parts.append("\n".join(["kept as they are:", *(f"  {item.module}: {item.reason}" for item in kept)]))
    return "\n\n".join(parts)


def _lines(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _by_reason(uncounted: Mapping[str, str]) -> dict[str, list[str]]:
    """Why something cannot be counted -> what."""
    return {reason: [name for name, why in uncounted.items() if why == reason] for reason in uncounted.values()}


def _count(number: int | None) -> str:
    return "not counted" if number is None else f"{number:,}"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _percent(error: float | None) -> str:
    return "" if error is None else f"{error:.1%}"
