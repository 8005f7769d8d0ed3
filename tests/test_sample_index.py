"""An index names the samples of a data set."""

from __future__ import annotations

import pytest
import torch

from kdx.sample_index import check_index


@pytest.mark.parametrize(
    ("index", "targets"),
    [
        ([0, 1, 2], None),
        ([3, 0, 3], None),
        ([3, 0, 3], [1, 0, 1]),
        ([3, 0, 3], [[float("nan"), 1.0], [0.0, 0.0], [float("nan"), 1.0]]),
    ],
)
def test_samples_may_come_in_any_order_and_twice(index, targets) -> None:
    check_index("it", torch.tensor(index), 3, samples=4, targets=None if targets is None else torch.tensor(targets))


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (
            [0, -1, 2],
            ValueError,
            r"it: batch.index numbers the samples from 0, and holds -1 \(row 1\); give",
        ),
        ([0, 4, 2], ValueError, "it: samples is 4, but batch.index holds 4; give the training set's length"),
        ([2, 0, 2], ValueError, r"it: batch.index holds 2 for two samples with different targets \(rows 0 and 2\)"),
        ([0.0, 1.0, 2.0], TypeError, "it: expected batch.index of int64, got torch.float32"),
        ([True, False, True], TypeError, "it: expected batch.index of int64, got torch.bool"),
        ([0, 1], ValueError, r"it: expected batch.index of shape \[3\], got \[2\]"),
        ([[0], [1], [2]], ValueError, r"it: expected batch.index of shape \[3\], got \[3, 1\]"),
    ],
)
def test_what_names_no_sample_is_one_sentence(index, error, message) -> None:
    with pytest.raises(error, match=message):
        check_index("it", torch.tensor(index), 3, samples=4, targets=torch.tensor([0, 1, 2]))


def test_what_is_no_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match=r"expected batch.index of int64, got list"):
        check_index("it", [0, 1], 2)
