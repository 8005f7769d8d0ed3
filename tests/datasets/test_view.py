"""A view: batches that carry the row of every sample, replaced targets, keyed augmentation."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from kdx.batch import Batch
from kdx.datasets import Digits, ShiftFlip, View, few_labels, train_validation_split


@pytest.fixture(scope="module")
def digits():
    return Digits("train")


def test_shuffled_batches_carry_the_row_in_the_original_data_set(digits):
    train, _ = train_validation_split(digits.targets, validation=200)
    targets = few_labels(digits.targets[train], labelled=100)
    loader = DataLoader(View(digits, train, targets), batch_size=100, shuffle=True)
    shown = dict(zip(train.tolist(), targets.tolist(), strict=True))
    seen = []
    for batch in loader:
        assert type(batch) is Batch
        assert (batch.targets.dtype, batch.index.dtype) == (torch.int64, torch.int64)
        assert torch.equal(batch.inputs, digits.images[batch.index])
        assert batch.targets.tolist() == [shown[row] for row in batch.index.tolist()]
        seen += batch.index.tolist()
    assert sorted(seen) == train.tolist()


def test_without_arguments_a_view_is_the_whole_data_set(digits):
    view = View(digits)
    assert len(view) == len(digits)
    item = view[7]
    assert torch.equal(item.inputs, digits.images[7])
    assert (item.targets, item.index) == (int(digits.targets[7]), 7)


def test_any_map_style_data_set_will_do():
    inputs, labels = torch.rand(5, 3), torch.arange(5)
    view = View(TensorDataset(inputs, labels), [4, 2])
    batch = next(iter(DataLoader(view, batch_size=2)))
    assert torch.equal(batch.inputs, inputs[[4, 2]])
    assert batch.targets.tolist() == [4, 2]
    assert batch.index.tolist() == [4, 2]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_transform_sees_row_and_epoch_whatever_the_batches(digits, workers):
    augment = ShiftFlip(shift=1, seed=2)
    rows = torch.arange(30, 60)
    view = View(digits, rows, transform=augment)
    view.set_epoch(5)
    expected = augment(digits.images[rows], rows, epoch=5)
    for batch in DataLoader(view, batch_size=8, shuffle=True, num_workers=workers):
        assert torch.equal(batch.inputs, expected[batch.index - 30])
    assert torch.equal(view[3].inputs, expected[3])
    view.set_epoch(6)
    assert not torch.equal(torch.stack([item.inputs for item in view.__getitems__(list(range(30)))]), expected)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"indices": [0, 1297]}, IndexError, r"0 \.\. 1296; got 0 \.\. 1297"),
        ({"indices": [-1]}, IndexError, r"got -1"),
        ({"indices": torch.zeros(2, 2)}, ValueError, r"one dimension \[M\]; got shape \[2, 2\]"),
        ({"indices": [1, 2], "targets": torch.zeros(1297)}, ValueError, r"each of the 2 indices.*targets\[indices\]"),
    ],
)
def test_errors_name_the_argument(digits, options, error, message):
    with pytest.raises(error, match=message):
        View(digits, **options)
