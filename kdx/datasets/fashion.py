"""Fashion-MNIST: the embedded subset, or the whole set from a folder."""

from __future__ import annotations

import gzip
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from kdx.datasets.embedded import check_split, embedded_arrays
from kdx.datasets.images import ImageSet

__all__ = ["FashionMnist"]

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


class FashionMnist(ImageSet):
    """Fashion-MNIST: 28x28 grey images of ten kinds of clothing (Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747).

    Without ``root`` this is the class-balanced subset that kdx carries (500 training and 200 test images of each class,
    MIT licence, see ``kdx/data/README.md``); nothing is downloaded. Pixels are scaled to 0..1 and normalised with the
    mean 0.2860 and the standard deviation 0.3530 of the 60,000 training images.

    Args:
        split: ``"train"`` (5,000 images) or ``"test"`` (2,000 images).
        root: folder with the four ``idx.gz`` files of the whole set (60,000 and 10,000 images), such as
            ``/usr/share/datasets/fashion-mnist`` of Debian's package ``dataset-fashion-mnist``.

    Attributes:
        rows: int64, ``[N]``, the row of each image in the original training or test file.

    Raises:
        ValueError: ``split`` is another word, or a file in ``root`` is not an idx file.
        FileNotFoundError: ``root`` lacks one of the files.

    Example:
        >>> from kdx.datasets import FashionMnist
        >>> train = FashionMnist("train")
        >>> len(train), train.input_shape, train.classes[int(train.targets[0])]
        (5000, (1, 28, 28), 'Pullover')

    """

    def __init__(self, split: Literal["train", "test"] = "train", *, root: str | PathLike[str] | None = None) -> None:
        check_split(split)
        if root is None:
            names = (f"{split}_{part}" for part in ("images", "labels", "rows"))
            pixels, labels, rows = embedded_arrays("fashion_mnist.npz", *names)
        else:
            pixels, labels = (_read_idx(Path(root) / name) for name in FILES[split])
            rows = np.arange(len(labels))
        super().__init__(
            torch.from_numpy(pixels), torch.from_numpy(labels), CLASSES, scale=255.0, mean=0.2860, std=0.3530
        )
        self.rows = torch.from_numpy(rows).long()


def _read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The array in a gzipped idx file of unsigned bytes."""
    if not path.is_file():
        names = ", ".join(name for pair in FILES.values() for name in pair)
        raise FileNotFoundError(
            f"root has no file {path.name}: {path.parent}. It must hold {names}; "
            "on Debian `apt-get install dataset-fashion-mnist` puts them into /usr/share/datasets/fashion-mnist"
        )
    data = bytearray(gzip.decompress(path.read_bytes()))  # writable, as torch wants its memory
    if bytes(data[:3]) != b"\0\0\x08":
        raise ValueError(f"{path} is not an idx file of unsigned bytes: it starts with {bytes(data[:4]).hex()}")
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(data[3])]
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
