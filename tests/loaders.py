"""Data that several tests train on."""

from __future__ import annotations

import math
import random

import numpy as np
import torch
from torch.utils.data import Dataset

from kdx.batch import Batch


class Noisy(Dataset):
    """Images whose augmentation draws from Python's, NumPy's and torch's global generators."""

    def __init__(self, images) -> None:
        self.inputs, self.targets = images

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i):
        noise = random.random() + np.random.rand() + torch.rand(()).item()
        return Batch(self.inputs[i] + 0.1 * noise, self.targets[i], i)


class Shuffled:
    """Batches of tensors in a new order each epoch; a loader that costs nothing."""

    def __init__(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return math.ceil(len(self.inputs) / 128)

    def __iter__(self):
        for rows in torch.randperm(len(self.inputs)).split(128):
            yield Batch(self.inputs[rows], self.targets[rows], rows)
