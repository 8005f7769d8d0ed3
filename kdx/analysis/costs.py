"""The costs of models in text, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["cost_table"]

_NOT_COUNTED = "not counted"


def cost_table(costs: Mapping[str, Mapping[str, Any]], *, shares: bool = False) -> str:
    """A row for each model, and below it why something of one cannot be counted.

    Args:
        costs: name -> costs as :meth:`kdx.analysis.Cost.as_dict` gives them; keys that are absent are left blank.
        shares: whether a last row has the costs of the last model as shares of those of the first.

    Example:
        >>> cost = {"parameters": 10, "flops": None, "bytes": 2048, "bits": 32.0, "sparsity": 0.5,
        ...         "latency_ms": 1.25, "latency_spread_ms": 0.1, "uncounted": {"flops": "cannot be counted: it hides"}}
        >>> print(cost_table({"student": cost}))
                 parameters  FLOPs        size     bits  zeros  latency (20-80 % spread)
        student  10          not counted  2.0 KiB  32    50.0%  1.25 ms (0.1)
        student: flops cannot be counted: it hides
    """
    rows = [["", "parameters", "FLOPs", "size", "bits", "zeros", "latency (20-80 % spread)"]]
    for name, cost in costs.items():
        size = cost["bytes"]
        rows.append(
            [
                name,
                *("" if key not in cost else _count(cost[key]) for key in ("parameters", "flops")),
                _NOT_COUNTED if size is None else f"{size / 1024:,.1f} KiB",
                "" if cost.get("bits") is None else f"{cost['bits']:.3g}",
                "" if cost.get("sparsity") is None else f"{cost['sparsity']:.1%}",
                f"{cost['latency_ms']:.3g} ms ({cost['latency_spread_ms']:.2g})",
            ]
        )
    if shares:
        first, *_, last = costs.values()
        amounts = [(last[key], first[key]) for key in ("parameters", "flops", "bytes", "latency_ms")]
        texts = [f"{new / old:.1%}" if old and new is not None else "" for new, old in amounts]
        rows.append(["", *texts[:3], "", "", texts[3]])
    lines = _lines(rows)
    for name, cost in costs.items():
        uncounted: Mapping[str, str] = cost.get("uncounted", {})
        for reason in dict.fromkeys(uncounted.values()):
            what = [key for key, why in uncounted.items() if why == reason]
            lines.append(f"{name.strip()}: {', '.join(what)} {reason}")
    return "\n".join(lines)


def _count(number: int | None) -> str:
    return _NOT_COUNTED if number is None else f"{number:,}"


def _lines(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
