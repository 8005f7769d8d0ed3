"""What a loader's data set says of its samples: their number and their classes."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from kdx.datasets import Digits, SampleStream, View
from kdx.training.dataset_facts import dataset_labels, dataset_size


def test_the_size_of_a_data_set_counts_what_its_indices_can_name(images) -> None:
    whole = TensorDataset(*images)
    assert dataset_size(DataLoader(whole, 16)) == 96
    assert dataset_size(DataLoader(Subset(View(whole, torch.arange(9)), [1, 2]), 2)) == 96
    assert dataset_size([images]) is None
    assert dataset_size(DataLoader(type("Endless", (IterableDataset,), {"__iter__": lambda _: iter([0])})())) is None


class Labelled(TensorDataset):
    """Five samples that say their classes."""

    def __init__(self, targets=(3, 1, 2, 1, 0)) -> None:
        super().__init__(torch.zeros(5, 2), torch.arange(5))
        self.targets = targets


def test_the_labels_of_a_data_set_stand_where_the_index_points() -> None:
    whole = Labelled()
    assert dataset_labels(DataLoader(whole)).tolist() == [3, 1, 2, 1, 0]
    assert dataset_labels(DataLoader(View(whole, [4, 0]))).tolist() == [3, -100, -100, -100, 0]
    hidden = View(whole, [4, 0, 2], torch.tensor([-100, 3, 2]))
    assert dataset_labels(DataLoader(hidden)).tolist() == [3, -100, 2, -100, -100]
    assert dataset_labels(DataLoader(Subset(hidden, [2]))).tolist() == [-100, -100, 2, -100, -100]
    assert dataset_labels(DataLoader(SampleStream(hidden), 1)).tolist() == [3, -100, 2, -100, -100]
    own = View(TensorDataset(torch.zeros(3, 2), torch.zeros(3)), [2, 0], torch.tensor([7, 5]))
    assert dataset_labels(DataLoader(own)).tolist() == [5, -100, 7]
    assert dataset_labels(DataLoader(View(Digits("test"), [3]))).tolist()[3] == int(Digits("test").targets[3])


@pytest.mark.parametrize("targets", [None, [0.5] * 5, torch.zeros(5, 3, dtype=torch.int64), list("abcde"), [1, 2]])
def test_targets_that_are_no_classes_are_no_labels(targets) -> None:
    assert dataset_labels(DataLoader(Labelled(targets))) is None
    assert dataset_labels([torch.zeros(2)]) is None
