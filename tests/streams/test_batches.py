"""The training data as a stream: its own random state, windows, epochs, size."""

from __future__ import annotations

import random
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import kdx
from kdx.training.batches import ResumableLoader, windows
from tests.loaders import Noisy


def test_a_generator_of_the_loader_is_part_of_the_checkpoint(images) -> None:
    def loader() -> DataLoader:
        return DataLoader(TensorDataset(*images), 16, shuffle=True, generator=torch.Generator().manual_seed(3))

    whole = ResumableLoader(loader(), torch.device("cpu"))
    expected = [batch.inputs for epoch in range(2) for batch in whole.epoch(epoch)]
    part = ResumableLoader(loader(), torch.device("cpu"))
    seen = [batch.inputs for _, batch in zip(range(4), part.epoch(0), strict=False)]
    rest = ResumableLoader(loader(), torch.device("cpu"))
    rest.load_state_dict(part.state_dict())
    seen += [batch.inputs for epoch in range(2) for batch in rest.epoch(epoch)]
    assert len(seen) == len(expected)
    assert all(a.equal(b) for a, b in zip(seen, expected, strict=True))


def test_the_data_do_not_depend_on_what_training_draws(images) -> None:
    def inputs(draws: int) -> list[torch.Tensor]:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        found = []
        for batch in ResumableLoader(DataLoader(Noisy(images), 16, shuffle=True), torch.device("cpu")).epoch(0):
            torch.rand(draws)
            found.append(batch.inputs)
        return found

    assert all(a.equal(b) for a, b in zip(inputs(1), inputs(9), strict=True))


def test_windows_group_batches_and_keep_the_rest() -> None:
    assert [len(window) for window in windows(iter(range(7)), 3)] == [3, 3, 1]


def test_the_epoch_is_told_to_samplers_and_data_sets(net, images) -> None:
    class Told(TensorDataset):
        epochs: ClassVar[list[int]] = []

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

    kdx.fit(kdx.Supervised(net()), DataLoader(Told(*images), 32), epochs=3)
    assert Told.epochs == [0, 1, 2]


def test_empty_and_endless_data(net, images) -> None:
    class Endless(IterableDataset):
        def __iter__(self):
            while True:
                yield images[0][0], images[1][0]

    with pytest.raises(ValueError, match="train is empty"):
        kdx.fit(kdx.Supervised(net()), [])
    with pytest.raises(ValueError, match="train has no length, so give steps="):
        kdx.fit(kdx.Supervised(net()), DataLoader(Endless(), 4))
    assert kdx.fit(kdx.Supervised(net()), DataLoader(Endless(), 4), steps=3).step == 3
