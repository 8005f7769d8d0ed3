"""Windows of an electrocardiogram: what they hold, what follows, and the border of the splits."""

import pytest
import torch

from kdx.datasets import Electrocardiogram


def test_items_have_the_documented_shapes_and_types():
    train, test = Electrocardiogram("train"), Electrocardiogram("test")
    assert (len(train), len(test)) == (6265, 2633)
    assert (train.num_classes, train.input_shape) == (3, (1, 128))
    window, target = train[5]
    assert (window.shape, target.shape, window.dtype, target.dtype) == ((1, 128), (3,), torch.float32, torch.float32)
    assert torch.equal(window, train.windows[5])
    assert torch.equal(target, train.targets[5])


def test_targets_are_the_values_that_many_steps_after_the_window():
    data = Electrocardiogram("test", window=16, ahead=(1, 5), step=1)
    assert torch.equal(data.targets[:-20, 0], data.windows[1:-19, 0, -1])
    assert torch.equal(data.targets[:-20, 1], data.windows[5:-15, 0, -1])
    wide = Electrocardiogram("test", window=16, ahead=(1, 5), step=3)
    assert torch.equal(wide.windows, data.windows[::3])


def test_the_training_part_is_standardised_and_the_test_part_with_its_numbers():
    train, test = (Electrocardiogram(split, window=1, ahead=(1,), step=1) for split in ("train", "test"))
    assert abs(train.windows.mean()) < 1e-3
    assert abs(train.windows.std() - 1) < 1e-3
    assert (test.mean, test.std) == (train.mean, train.std)
    assert abs(test.windows.std() - 1) > 0.1


def test_known_values_in_millivolt():
    """The first three samples of the recording are -0.245, -0.215 and -0.185 mV."""
    data = Electrocardiogram("train", window=1, ahead=(1,), step=1)
    assert float(data.windows[0, 0, 0]) * data.std + data.mean == pytest.approx(-0.215, abs=1e-6)


def test_no_value_is_in_both_splits(monkeypatch):
    counted = torch.arange(36_000).numpy()
    monkeypatch.setattr("kdx.datasets.electrocardiogram.embedded_arrays", lambda *names: (counted,))
    rows = {split: Electrocardiogram(split) for split in ("train", "test")}
    back = {
        split: (torch.cat([d.windows[:, 0], d.targets], 1) * d.std + d.mean) * 600 + 3072 for split, d in rows.items()
    }
    assert back["train"].max().round() < 25_200
    assert back["test"].min().round() == 25_200 + 128


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "valid"}, "split must be 'train' or 'test'; got 'valid'"),
        ({"window": 0}, "must be 1 or more; got window=0"),
        ({"ahead": ()}, r"ahead must be 1 or more.*ahead=\(\)"),
        ({"ahead": (4, 0)}, r"ahead=\(4, 0\)"),
        ({"step": 0}, "step=0"),
        ({"window": 40_000}, "the train split has 25200 values, too few for a window of 40000"),
    ],
)
def test_errors_say_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        Electrocardiogram(**options)
