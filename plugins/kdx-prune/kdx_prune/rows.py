"""The rows that decide what is pruned."""

from __future__ import annotations

import torch
from torch import nn

from kdx import Batch
from kdx.errors import StudentError
from kdx.students import StudentData

__all__ = ["first"]


def first(data: StudentData, rows: int, model: nn.Module) -> list[Batch]:
    """The first batches of training rows, on the model's device, until there are as many rows.

    Args:
        data: rows and their task.
        rows: how many at most; the batch in which the last one lies is whole.
        model: says the device.

    Raises:
        StudentError: there is no batch.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    found: list[Batch] = []
    seen = 0
    for batch in data.batches():
        if seen >= rows:
            break
        found.append(batch.to(device))
        seen += batch.rows
    if not seen:
        raise StudentError("the data has no batch, so nothing can be said of the network; give a loader with rows")
    return found
