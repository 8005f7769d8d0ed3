"""Arrays in .npz files: orders of axes, kinds of numbers, splits, bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import kdx
from kdx.datasets import NpzArrays, preprocessing_of
from kdx.datasets.contract import check_dataset


def saved(tmp_path: Path, name: str = "data.npz", **arrays) -> Path:
    np.savez(tmp_path / name, **arrays)
    return tmp_path / name


def pixels(rows: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, 5, 4, 3), dtype=np.uint8)


def test_images_with_channels_last_become_normalised_tensors(tmp_path) -> None:
    file = saved(tmp_path, x=pixels(), y=np.arange(8, dtype=np.uint8) % 3)
    options = {"file": file, "test": 0.25, "inputs": "x", "targets": "y", "layout": "NHWC", "divisor": 255}
    train = kdx.make("dataset", "npz", **options, normalise=True)
    assert (len(train), train.num_classes, train.input_shape) == (6, 3, (3, 5, 4))
    assert train.targets.dtype == torch.int64
    torch.testing.assert_close(train.inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(train.inputs.std((0, 2, 3), correction=0), torch.ones(3))
    plain = NpzArrays("test", **options)
    assert plain.inputs.min() >= 0
    assert plain.inputs.max() <= 1
    for each in (train, plain):
        check_dataset(each)


def test_the_test_rows_are_normalised_by_the_training_rows(tmp_path) -> None:
    train = saved(tmp_path, "train.npz", inputs=np.array([[1.0], [3.0]]), targets=np.array([0, 1]))
    test = saved(tmp_path, "test.npz", inputs=np.array([[5.0]]), targets=np.array([1]))
    assert NpzArrays("test", file=train, test=test, normalise=True).inputs.tolist() == [[3.0]]


@pytest.mark.parametrize(
    ("targets", "width", "dtype"),
    [
        (np.array([True, False, True, False]), 2, torch.int64),
        (np.array([0, 1, 2, 3], dtype=np.int8), 4, torch.int64),
        (np.array([0.5, 1.5, 2.5, np.nan]), 1, torch.float32),
        (np.zeros((4, 7), dtype=np.float16), 7, torch.float32),
        (np.tile(np.arange(5), (4, 1)), 5, torch.int64),
    ],
    ids=["truth values", "classes", "quantities, one unknown", "labels", "a class for each element"],
)
def test_targets_of_every_kind(tmp_path, targets, width, dtype) -> None:
    found = NpzArrays(file=saved(tmp_path, inputs=np.zeros((4, 5), np.float32), targets=targets), test=0.25)
    assert (found.num_classes, found.targets.dtype) == (width, dtype)
    check_dataset(found)


def test_token_numbers_stay_whole_and_name_their_vocabulary(tmp_path) -> None:
    file = saved(tmp_path, inputs=np.arange(12, dtype=np.int32).reshape(4, 3), targets=np.array([0, 1, 0, 1]))
    found = NpzArrays(file=file, test=0.25, vocabulary=20)
    assert (found.inputs.dtype, found.vocabulary, found.model_options) == (torch.int64, 20, ("vocabulary",))
    with pytest.raises(ValueError, match=r"expected token numbers 0 \.\. 4, got int32 \d \.\. \d+"):
        NpzArrays(file=file, test=0.25, vocabulary=5)


def test_whole_numbers_are_asked_about(tmp_path) -> None:
    file = saved(tmp_path, inputs=pixels(), targets=np.arange(8) % 2)
    with pytest.raises(ValueError, match=r"uint8 0 \.\. 255; say what they are: divisor=255 for pixels"):
        NpzArrays(file=file, test=0.25)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"x": np.zeros((2, 2))}, {}, "inputs: .*no array 'inputs', it holds x"),
        ({"inputs": np.zeros((2, 2))}, {}, "targets: .*no array 'targets', it holds inputs"),
        (
            {"inputs": np.zeros((2, 2)), "targets": np.zeros(3, int)},
            {},
            r"one target for each input, got inputs \[2, 2\]",
        ),
        ({"inputs": np.zeros(4), "targets": np.zeros(4, int)}, {}, r"expected \[N, \.\.\.\], a row each, got \[3\]"),
        ({"inputs": np.zeros((4, 2)), "targets": np.zeros(4, int)}, {"layout": "NHWC"}, "NHWC, 4 dimensions, got"),
        ({"inputs": np.array([["a"]] * 4), "targets": np.zeros(4, int)}, {}, "expected an array of numbers"),
        ({"inputs": np.zeros((4, 2)), "targets": np.array(["a"] * 4)}, {}, "number the classes"),
        ({"inputs": np.array([[0.0], [1], [np.nan], [2]]), "targets": np.zeros(4, int)}, {}, "not finite"),
        ({"inputs": np.zeros((4, 2)), "targets": np.array([0, 1, 2, 3])}, {"classes": ("a", "b")}, "2 names, and"),
        (
            {"inputs": np.zeros((4, 2)), "targets": np.zeros(4, int)},
            {"vocabulary": 3, "normalise": True},
            "no quantities",
        ),
    ],
)
def test_bad_arrays_are_named(tmp_path, arrays, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        NpzArrays(file=saved(tmp_path, **arrays), test=0.25, **options)


def test_files_that_are_none_are_named_and_nothing_pickled_is_read(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        NpzArrays(file=tmp_path / "no.npz", test=0.2)
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match=r"bad\.npz cannot be read as arrays"):
        NpzArrays(file=tmp_path / "bad.npz", test=0.2)
    file = saved(tmp_path, inputs=np.array([{"a": 1}] * 4, dtype=object), targets=np.zeros(4, int))
    with pytest.raises(ValueError, match="cannot be read as arrays of numpy: Object arrays cannot be loaded"):
        NpzArrays(file=file, test=0.25)


def test_the_preprocessing_reads_new_arrays(tmp_path) -> None:
    file = saved(tmp_path, inputs=pixels(), targets=np.arange(8) % 2)
    train = NpzArrays(file=file, test=file, layout="NHWC", divisor=255, normalise=True)
    again = preprocessing_of(train.preprocessing.as_dict())
    names, inputs = zip(*again.read(file), strict=True)
    assert names[:2] == (f"{file}[0]", f"{file}[1]")
    assert torch.stack(inputs).equal(train.inputs)
    np.save(tmp_path / "more.npy", pixels(2))
    assert len(list(again.read(tmp_path / "more.npy"))) == 2
    np.save(tmp_path / "grey.npy", pixels(2)[..., :1])
    with pytest.raises(ValueError, match="expected 3 channels"):
        list(again.read(tmp_path / "grey.npy"))
