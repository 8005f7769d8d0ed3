"""The row of an epoch under the names that logs use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["logged"]


def logged(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row of :attr:`kdx.training.Run.history` as logs name them: metrics are ``eval/<metric>``.

    Example:
        >>> logged({"epoch": 1, "step": 8, "train/loss": 0.5, "student/accuracy": 0.75})
        {'train/loss': 0.5, 'eval/student/accuracy': 0.75}
    """
    return {
        key if key.startswith("train/") else f"eval/{key}": value
        for key, value in row.items()
        if key not in ("epoch", "step")
    }
