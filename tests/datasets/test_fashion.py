"""Fashion-MNIST: the embedded subset and the whole set from a folder."""

import gzip
import struct

import numpy as np
import pytest
import torch

from kdx.datasets import FashionMnist


@pytest.mark.parametrize(("split", "size"), [("train", 5000), ("test", 2000)])
def test_items_agree_with_the_whole_tensor_view(split, size):
    data = FashionMnist(split)
    assert len(data) == size
    assert data.images.shape == (size, 1, 28, 28)
    assert (data.images.dtype, data.targets.dtype) == (torch.float32, torch.int64)
    assert (data.input_shape, data.num_classes, len(data.classes)) == ((1, 28, 28), 10, 10)
    image, label = data[17]
    assert torch.equal(image, data.images[17])
    assert type(label) is int
    assert label == data.targets[17]
    assert data.targets.bincount().tolist() == [size // 10] * 10


def test_normalising_can_be_undone_to_the_stored_bytes():
    data = FashionMnist("train")
    pixels = (data.images * data.std + data.mean) * 255
    assert (pixels - pixels.round()).abs().max() < 1e-3
    assert pixels.round().min() == 0
    assert pixels.round().max() == 255
    assert data.images.mean().abs() < 0.01
    assert (data.images.std() - 1).abs() < 0.01


def test_a_known_image_has_its_label():
    data = FashionMnist("train")
    assert data.rows[0] == 7  # row 7 of the original training file is a pullover
    assert data.classes[data[0][1]] == "Pullover"


def write_idx(path, array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def test_root_reads_idx_files(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    labels = np.array([9, 0, 3, 3, 1, 7], np.uint8)
    write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", images)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", labels)
    data = FashionMnist("test", root=tmp_path)
    assert data.targets.tolist() == labels.tolist()
    assert data.rows.tolist() == list(range(6))
    expected = (torch.from_numpy(images).float() / 255 - 0.2860) / 0.3530
    torch.testing.assert_close(data.images[:, 0], expected)


def test_errors_say_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="split must be 'train' or 'test'; got 'valid'"):
        FashionMnist("valid")
    with pytest.raises(FileNotFoundError, match=r"no file train-images-idx3-ubyte\.gz.*dataset-fashion-mnist"):
        FashionMnist("train", root=tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x0d\x01" + bytes(8)))
    with pytest.raises(ValueError, match="not an idx file of unsigned bytes: it starts with 00000d01"):
        FashionMnist("train", root=tmp_path)
