"""How many rows are evaluated at once: fewer where each has many outputs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from kdx.experiment.data import rows_at_once


@pytest.mark.parametrize(
    ("targets", "classes", "rows"),
    [
        (torch.zeros(4, dtype=torch.int64), 10, 500),
        (torch.zeros(4, 56, 56, dtype=torch.int64), 11, 500),
        (torch.zeros(4, 128, dtype=torch.int64), 49152, 10),
        (torch.zeros(4, 8192, dtype=torch.int64), 49152, 1),
        (torch.zeros(4, 300), 300, 500),
        (
            {"a": torch.zeros(4, dtype=torch.int64), "b": torch.zeros(4, 128, dtype=torch.int64)},
            {"a": 2, "b": 8192},
            63,
        ),
    ],
)
def test_rows_are_fewer_where_their_outputs_are_many(targets, classes, rows: int) -> None:
    assert rows_at_once(SimpleNamespace(targets=targets, num_classes=classes)) == rows
