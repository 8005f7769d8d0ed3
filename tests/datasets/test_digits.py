"""The digits of scikit-learn: fixed split, normalised pixels, a clear error without scikit-learn."""

import sys

import pytest
import torch

from kdx.datasets import Digits


def test_the_split_is_stratified_complete_and_always_the_same():
    train, test = Digits("train"), Digits("test")
    assert (len(train), len(test)) == (1297, 500)
    assert torch.equal(torch.cat([train.rows, test.rows]).sort().values, torch.arange(1797))
    share = test.targets.bincount() / (train.targets.bincount() + test.targets.bincount())
    assert (share - 500 / 1797).abs().max() < 0.006  # one image of the smallest class
    assert torch.equal(Digits("test").rows, test.rows)


def test_pixels_are_those_of_scikit_learn_normalised():
    from sklearn.datasets import load_digits

    data = Digits("train")
    assert data.images.shape == (1297, 1, 8, 8)
    assert (data.images.dtype, data.input_shape, data.num_classes) == (torch.float32, (1, 8, 8), 10)
    image, label = data[5]
    row = int(data.rows[5])
    expected = (torch.from_numpy(load_digits().images[row]).float() / 16 - 0.306) / 0.376
    torch.testing.assert_close(image[0], expected)
    assert label == load_digits().target[row]
    assert data.images.mean().abs() < 0.01
    assert (data.images.std() - 1).abs() < 0.01


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "kdx\[data\]"'):
        Digits()


def test_another_split_is_refused():
    with pytest.raises(ValueError, match="split must be 'train' or 'test'; got 'all'"):
        Digits("all")
