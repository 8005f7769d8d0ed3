"""The 8x8 handwritten digits that come with scikit-learn."""

from __future__ import annotations

from typing import Literal

import torch

from kdx.datasets.embedded import check_split
from kdx.datasets.images import ImageSet
from kdx.datasets.splits import train_validation_split

__all__ = ["Digits"]

TEST_SIZE = 500
SPLIT_SEED = 0


class Digits(ImageSet):
    """1,797 handwritten digits of 8x8 pixels, for experiments that take seconds (Alpaydin and Kaynak 1998, UCI).

    Read from scikit-learn (``pip install "kdx[data]"``). The test split holds 500 images, stratified by class and
    always the same. Pixels 0..16 are scaled to 0..1 and normalised with the mean 0.306 and standard deviation 0.376 of
    the training split.

    Args:
        split: ``"train"`` (1,297 images) or ``"test"`` (500 images).

    Attributes:
        rows: int64, ``[N]``, the row of each image in scikit-learn's array.

    Raises:
        ValueError: ``split`` is another word.
        ModuleNotFoundError: scikit-learn is not installed.

    Example:
        >>> from kdx.datasets import Digits
        >>> train = Digits("train")
        >>> len(train), train.input_shape, train.classes[3]
        (1297, (1, 8, 8), '3')

    """

    def __init__(self, split: Literal["train", "test"] = "train") -> None:
        check_split(split)
        try:
            from sklearn.datasets import load_digits
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                'the digits data set is read from scikit-learn, which is not installed: `pip install "kdx[data]"`',
                name=error.name,
            ) from error
        bunch = load_digits()
        labels = torch.from_numpy(bunch.target)
        train, test = train_validation_split(labels, validation=TEST_SIZE, seed=SPLIT_SEED)
        rows = train if split == "train" else test
        super().__init__(
            torch.from_numpy(bunch.images)[rows],
            labels[rows],
            tuple(str(digit) for digit in range(10)),
            scale=16.0,
            mean=0.306,
            std=0.376,
        )
        self.rows = rows
