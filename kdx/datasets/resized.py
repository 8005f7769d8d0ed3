"""The images of a data set at another size."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["Resized"]


class Resized(Dataset[tuple[Tensor, Any]]):
    """A data set of images at another height and width, by bilinear interpolation, smoothed where they get smaller.

    Targets stay as they are, and so does every other attribute of the data set.

    Args:
        dataset: a map-style data set whose rows are ``(image [C, H, W], target)``, with ``input_shape``.
        size: the new ``(H, W)``.

    Attributes:
        input_shape: ``(C, H, W)`` of the new images.

    Raises:
        ValueError: the inputs are no images.

    Example:
        >>> from kdx.datasets import Digits
        >>> Resized(Digits("test"), (16, 16))[0][0].shape
        torch.Size([1, 16, 16])
    """

    def __init__(self, dataset: Any, size: tuple[int, int]) -> None:
        if len(dataset.input_shape) != 3:
            raise ValueError(f"size: expected images [C, H, W] to resize, got inputs {list(dataset.input_shape)}")
        self.inner = dataset
        self.size = size
        self.input_shape = (dataset.input_shape[0], *size)

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not there yet, as while it is unpickled
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        """The image and the target of row ``index``."""
        image, target = self.inner[index]
        found: Tensor = F.interpolate(image[None], self.size, mode="bilinear", antialias=True)[0]
        return found, target
