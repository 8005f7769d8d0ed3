"""Cut the Fashion-MNIST subset that kdx ships out of the full data set.

Reads the four ``idx.gz`` files of Debian's package ``dataset-fashion-mnist`` and writes ``fashion_mnist.npz`` with
500 training and 200 test images of each of the ten classes. On Debian, without root::

    apt-get download dataset-fashion-mnist
    dpkg -x dataset-fashion-mnist_*.deb unpacked
    python tools/cut_fashion_mnist.py unpacked/usr/share/datasets/fashion-mnist

The rows are chosen by the smallest SHA-256 of ``"{SEED}:{split}:{row}"`` within each class and stay in the order of the
source file. A hash rather than a random generator, because its order is the same in every version of every library.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from packing import DATA, Arrays, checked, command

SEED = 2017
PER_CLASS = {"train": 500, "test": 200}
SOURCES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
SHA256 = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
OUTPUT = DATA / "fashion_mnist.npz"


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The array of one ``idx.gz`` file of unsigned bytes, after checking the file's SHA-256."""
    data = gzip.decompress(checked(path, SHA256[path.name]))
    rank = data[3]  # bytes 0-2 are 0, 0, 8 (unsigned byte); byte 3 is the number of dimensions
    shape = struct.unpack(f">{rank}I", data[4 : 4 + 4 * rank])
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def choose(labels: npt.NDArray[np.uint8], split: str) -> npt.NDArray[np.int32]:
    """Row numbers of ``PER_CLASS[split]`` images of each class, ascending."""

    def rank(row: int) -> bytes:
        return hashlib.sha256(f"{SEED}:{split}:{row}".encode()).digest()

    rows: list[int] = []
    for label in range(10):
        rows += sorted(np.flatnonzero(labels == label).tolist(), key=rank)[: PER_CLASS[split]]
    return np.array(sorted(rows), np.int32)


def cut(source: Path) -> Arrays:
    """The arrays of the subset: images, labels and source rows of both splits."""
    arrays: Arrays = {}
    for split, (image_file, label_file) in SOURCES.items():
        images, labels = read_idx(source / image_file), read_idx(source / label_file)
        rows = choose(labels, split)
        arrays[f"{split}_images"] = images[rows]
        arrays[f"{split}_labels"] = labels[rows]
        arrays[f"{split}_rows"] = rows
    return arrays


if __name__ == "__main__":
    sys.exit(command(cut, OUTPUT, __doc__, "folder with the four idx.gz files"))
