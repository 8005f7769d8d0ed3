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

import argparse
import gzip
import hashlib
import io
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

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
OUTPUT = Path(__file__).resolve().parent.parent / "kdx" / "data" / "fashion_mnist.npz"


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The array of one ``idx.gz`` file of unsigned bytes, after checking the file's SHA-256."""
    raw = path.read_bytes()
    found = hashlib.sha256(raw).hexdigest()
    if found != SHA256[path.name]:
        raise ValueError(f"{path} is not the file this subset is cut from: SHA-256 {found}, want {SHA256[path.name]}")
    data = gzip.decompress(raw)
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


def cut(source: Path) -> dict[str, npt.NDArray[np.generic]]:
    """The arrays of the subset: images, labels and source rows of both splits."""
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for split, (image_file, label_file) in SOURCES.items():
        images, labels = read_idx(source / image_file), read_idx(source / label_file)
        rows = choose(labels, split)
        arrays[f"{split}_images"] = images[rows]
        arrays[f"{split}_labels"] = labels[rows]
        arrays[f"{split}_rows"] = rows
    return arrays


def encode(arrays: dict[str, npt.NDArray[np.generic]]) -> bytes:
    """An ``.npz`` that ``numpy.load`` reads, with fixed time stamps so that equal arrays give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3  # the byte differs between systems otherwise
            archive.writestr(info, member.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)
    return buffer.getvalue()


def main() -> int:
    """Write the subset and print the SHA-256 and size of what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with the four idx.gz files")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="file to write (default: %(default)s)")
    options = parser.parse_args()
    blob = encode(cut(options.source))
    options.output.write_bytes(blob)
    print(f"{hashlib.sha256(blob).hexdigest()}  {options.output}  {len(blob)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
