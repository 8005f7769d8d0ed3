"""Windows of a heart's electrical activity, and what comes after them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from kdx.datasets.embedded import check_split, embedded_arrays

__all__ = ["Electrocardiogram"]

TRAINED = 0.7
"""Share of the recording, from its start, that is for training."""


class Electrocardiogram(Dataset[tuple[Tensor, Tensor]]):
    """Windows of an electrocardiogram, to forecast the voltages that follow: regression with several outputs.

    The recording is embedded: five minutes of record 208 (lead MLII) of the MIT-BIH Arrhythmia Database (Moody and Mark
    2001, https://doi.org/10.13026/C2F305, ODC-By 1.0), with normal and premature beats and with artefacts, as the means
    of three samples each: 36,000 values, 120 a second. The first seven tenths are for training, the rest for the test;
    between the two lies the length of a window, so that no value is in both. Windows and targets are standardised with
    the mean and the standard deviation of the training part.

    Windows of one split overlap where ``step`` is below ``window``: rows held out of the training split at random are
    no independent test, those of the test split are.

    Args:
        split: ``"train"`` (6,265 windows by default) or ``"test"`` (2,633).
        window: L, values in a window; 128 is a second, about a beat and a half.
        ahead: how many values after the window's last one each target lies; 4, 8 and 16 are 33, 67 and 133 ms.
        step: values between the starts of two windows.

    Attributes:
        windows: float32, ``[N, 1, L]``.
        targets: float32, ``[N, K]``, one column for each of ``ahead``.
        num_classes: K, the number of outputs.
        input_shape: ``(1, L)``.
        mean: of the training part, in mV.
        std: of the training part, in mV; a root mean squared error times this is one in mV.

    Raises:
        ValueError: ``split`` is another word, a number is below 1, ``ahead`` is empty, or a split has no whole window.

    Example:
        >>> from kdx.datasets import Electrocardiogram
        >>> train = Electrocardiogram("train")
        >>> window, target = train[0]
        >>> len(train), window.shape, target.shape
        (6265, torch.Size([1, 128]), torch.Size([3]))

    """

    def __init__(
        self,
        split: Literal["train", "test"] = "train",
        *,
        window: int = 128,
        ahead: Sequence[int] = (4, 8, 16),
        step: int = 4,
    ) -> None:
        check_split(split)
        if not ahead or min(window, step, *ahead) < 1:
            raise ValueError(
                f"window, step and each of ahead must be 1 or more; got window={window}, step={step}, "
                f"ahead={tuple(ahead)}"
            )
        (sums,) = embedded_arrays("electrocardiogram.npz", "sums")
        voltage = (sums.astype(np.float64) / 3 - 1024) / 200  # [36000], mV
        border = round(TRAINED * len(voltage))
        self.mean, self.std = float(voltage[:border].mean()), float(voltage[:border].std())
        part = voltage[:border] if split == "train" else voltage[border + window :]
        starts = np.arange(0, len(part) - window - max(ahead) + 1, step)
        if not len(starts):
            raise ValueError(
                f"the {split} split has {len(part)} values, too few for a window of {window} and {max(ahead)} more"
            )
        series = torch.from_numpy((part - self.mean) / self.std).float()
        first = torch.from_numpy(starts)[:, None]
        self.windows = series[first + torch.arange(window)].unsqueeze(1)  # [N, 1, L]
        self.targets = series[first + window - 1 + torch.tensor(list(ahead))]  # [N, K]
        self.num_classes = len(ahead)
        self.input_shape = (1, window)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The window ``[1, L]`` of row ``index`` and what follows it, ``[K]``."""
        return self.windows[index], self.targets[index]
