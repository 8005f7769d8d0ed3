"""Rows that are held out for the test where data come without a test split of their own."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kdx.datasets.splits import train_validation_split

__all__ = ["rows_of_split"]

SEED = 0
"""Always the same, so that training and test rows of one data set never mix, whatever the seed of a run."""


def rows_of_split(targets: Tensor, share: float, split: Literal["train", "test"]) -> Tensor:
    """The rows of one of two splits, the same in every call: class numbers ``[N]`` keep their shares in both.

    Args:
        targets: of all rows, ``[N, ...]``.
        share: of the rows that are held out for the test, between 0 and 1, both excluded.
        split: the part that is asked for.

    Returns:
        Rows, int64, ascending.

    Raises:
        ValueError: the share is out of range, or leaves one of the splits without a row.

    Example:
        >>> rows_of_split(torch.tensor([0, 0, 1, 1]), 0.5, "test").numel()
        2
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise ValueError(f"test: expected the share of rows held out for the test, between 0 and 1, got {share!r}")
    count = round(len(targets) * share)
    if not 0 < count < len(targets):
        raise ValueError(f"test: a share of {share} of {len(targets)} rows leaves a split without a row")
    one_class = targets.dim() == 1 and not targets.is_floating_point() and bool((targets >= 0).all())
    strata = targets if one_class else torch.zeros(len(targets), dtype=torch.int64)
    train, test = train_validation_split(strata, count, SEED)
    return train if split == "train" else test
