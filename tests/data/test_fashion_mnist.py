"""The Fashion-MNIST subset in the package is the one that its script cuts."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[2]
FILE = REPOSITORY / "kdx" / "data" / "fashion_mnist.npz"
SHA256 = "157402ab83d31eb5a7ad1c4dedd775598f665698199061b391c61b86dbab49e4"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(scope="module")
def script(tool):
    return tool("cut_fashion_mnist")


@pytest.fixture(scope="module")
def arrays():
    with np.load(FILE, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def test_the_file_has_the_recorded_sha256_and_is_small_enough():
    blob = FILE.read_bytes()
    assert hashlib.sha256(blob).hexdigest() == SHA256
    assert len(blob) <= 3_500_000


@pytest.mark.parametrize(("split", "per_class", "source_rows"), [("train", 500, 60_000), ("test", 200, 10_000)])
def test_every_class_has_equally_many_images_from_the_right_source(arrays, split, per_class, source_rows):
    images, labels, rows = (arrays[f"{split}_{name}"] for name in ("images", "labels", "rows"))
    assert images.shape == (10 * per_class, 28, 28)
    assert images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [per_class] * 10
    assert 0 <= rows[0] < rows[-1] < source_rows
    assert (np.diff(rows) > 0).all()


def test_no_image_is_in_both_splits_or_twice_in_one(arrays):
    train = {image.tobytes() for image in arrays["train_images"]}
    test = {image.tobytes() for image in arrays["test_images"]}
    assert (len(train), len(test), len(train & test)) == (5000, 2000, 0)


def test_the_rows_are_those_that_the_seed_chooses_from_these_labels(script):
    labels = np.array([k % 10 for k in range(60_000)], np.uint8)
    rows = script.choose(labels, "train")
    by_hash = sorted(range(3, 60_000, 10), key=lambda row: hashlib.sha256(f"2017:train:{row}".encode()).digest())
    assert rows[labels[rows] == 3].tolist() == sorted(by_hash[:500])


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_the_subset_is_cut_from_the_original_train_and_test_files(script, arrays):
    cut = script.cut(DEBIAN)
    assert list(cut) == list(arrays)
    for name, array in cut.items():
        np.testing.assert_array_equal(arrays[name], array)


def test_a_source_file_with_other_bytes_is_refused(script, tmp_path):
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="SHA-256"):
        script.read_idx(path)
