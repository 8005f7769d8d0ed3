"""Data sets of torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from kdx_vision.models import collection

__all__ = ["TorchvisionSet"]


class TorchvisionSet(Dataset[tuple[Tensor, int]]):
    """A labelled image set of torchvision that takes ``train=``: CIFAR10, CIFAR100, MNIST, KMNIST and their like.

    Pixels are scaled to 0 .. 1 and then to -1 .. 1.

    Args:
        split: ``"train"`` or ``"test"``.
        dataset: the class in ``torchvision.datasets``, as ``"CIFAR100"``.
        root: where its files are; nothing is downloaded.

    Attributes:
        targets: int64 ``[N]``.
        classes: the name of each class.
        num_classes: how many there are.
        input_shape: channels, height and width of the first image.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
        ValueError: torchvision has no such data set, or it has no ``train=`` and ``targets``.
        RuntimeError: from torchvision, if the files are not under ``root``.
    """

    def __init__(self, split: Literal["train", "test"] = "train", *, dataset: str, root: Path) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        vision = collection("torchvision")
        made: Any = getattr(vision.datasets, dataset, None)
        if not (isinstance(made, type) and issubclass(made, Dataset)):
            raise ValueError(f"dataset: torchvision.datasets has none named {dataset!r}")
        try:
            self._rows = made(root=str(root), train=split == "train", download=False)
            self.targets = torch.as_tensor(self._rows.targets, dtype=torch.int64)
        except (TypeError, AttributeError) as error:
            raise ValueError(
                f"dataset: {dataset} takes no train= or has no targets ({error}); write a kdx data set around it"
            ) from error
        self._pixels = vision.transforms.functional.to_tensor
        self.classes = tuple(map(str, getattr(self._rows, "classes", range(int(self.targets.max()) + 1))))
        self.num_classes = len(self.classes)
        self.input_shape = tuple(self[0][0].shape)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The image ``[C, H, W]`` float32 and the label of row ``index``."""
        image, label = self._rows[index]
        return 2 * self._pixels(image) - 1, int(label)
