"""Images in folders named for their classes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["ImageFolder"]

ENDINGS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Images in ``FOLDER/train/CLASS/*`` and ``FOLDER/test/CLASS/*``, read when they are asked for.

    An image is scaled so that its shorter side has ``size`` pixels (bilinear), cut to the square in its middle, scaled
    to 0 .. 1 and normalised: with ImageNet's mean and standard deviation in colour, with 0.5 and 0.5 in grey. Classes
    are the sorted folder names of the training split.

    Args:
        split: ``"train"`` or ``"test"``.
        folder: holds ``train`` and ``test``.
        size: height and width of what the models see.
        grey: one channel instead of three.

    Attributes:
        files: path of every image, sorted by class and name.
        targets: int64 ``[N]``.
        classes: the name of each class.
        num_classes: how many there are.
        input_shape: ``(3, size, size)`` or ``(1, size, size)``.

    Raises:
        FileNotFoundError: a folder is missing or holds no image.
        ValueError: the test split has a class that the training split has not; when an item is read, a file that is no
            image, which is named.
    """

    def __init__(
        self, split: Literal["train", "test"] = "train", *, folder: Path, size: int = 64, grey: bool = False
    ) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        if size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {size}")
        self.classes = _classes(Path(folder) / "train")
        found = _classes(Path(folder) / split)
        if strange := [name for name in found if name not in self.classes]:
            raise ValueError(f"folder: the test split has a class {strange[0]!r} that the training split has not")
        pairs = [
            (path, number)
            for number, name in enumerate(self.classes)
            for path in sorted((Path(folder) / split / name).glob("*"))
            if path.suffix.lower() in ENDINGS
        ]
        if not pairs:
            raise FileNotFoundError(f"folder: {str(Path(folder) / split)!r} holds no image in its class folders")
        self.files = [path for path, _ in pairs]
        self.targets = torch.tensor([number for _, number in pairs], dtype=torch.int64)
        self.num_classes = len(self.classes)
        self.size, self.grey = size, grey
        self.input_shape = (1 if grey else 3, size, size)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The image ``[C, size, size]`` float32 and the label of row ``index``."""
        path = self.files[index]
        try:
            with Image.open(path) as opened:
                image = opened.convert("L" if self.grey else "RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{path} cannot be read as an image ({error}); remove it or save it again") from error
        scale = self.size / min(image.size)
        width, height = (max(round(side * scale), self.size) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        image = image.crop((left, top, left + self.size, top + self.size))
        pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255)  # [H, W] or [H, W, 3]
        pixels = pixels.unsqueeze(0) if self.grey else pixels.permute(2, 0, 1)
        mean, std = ((0.5,), (0.5,)) if self.grey else IMAGENET
        return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None], int(self.targets[index])


def _classes(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"folder: there is no {str(folder)!r}; expected FOLDER/train/CLASS/, FOLDER/test/CLASS/"
        )
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))
