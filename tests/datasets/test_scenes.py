"""Scenes composed of Fashion-MNIST garments: pixels, classes, void, splits."""

import pytest
import torch

from kdx.datasets import ComposedScenes, ImageSet
from kdx.datasets.scenes import _compose, _void_rim


def grey(data):
    return ((data.images * data.std + data.mean) * 255).round().squeeze(1)


@pytest.fixture(scope="module")
def train():
    return ComposedScenes("train", scenes=400)


def test_items_have_the_documented_shapes_types_and_classes(train):
    assert len(train) == 400
    assert len(ComposedScenes("test")) == 500
    assert (train.num_classes, train.input_shape, train.classes[:2]) == (11, (1, 56, 56), ("background", "T-shirt/top"))
    image, target = train[17]
    assert (image.shape, image.dtype, target.shape, target.dtype) == ((1, 56, 56), torch.float32, (56, 56), torch.int64)
    assert torch.equal(target, train.targets[17])
    assert train.targets.unique().tolist() == [-100, *range(11)]


def test_two_to_four_garments_are_in_a_scene_and_every_class_is_seen_as_often(train):
    kinds = torch.stack([(train.targets == c).flatten(1).any(1) for c in range(1, 11)], 1)  # [N, 10]
    assert kinds.sum(1).max() == 4
    assert kinds.sum(1).min() >= 1  # two garments may be of one kind, or one hides the other
    assert kinds.sum(0).min() > 60


def test_garments_lie_over_one_another_whole_and_in_order():
    pixels = torch.zeros(2, 28, 28)
    pixels[0, :, :20] = 200
    pixels[1, 10:, 4:] = 100
    pixels[1, 0, 0] = 31  # too dark to be garment
    corner = torch.tensor([[2 * 40 + 3, 12 * 40 + 12, 0, 0]])
    garment = torch.tensor([[0, 1, -1, -1]])
    image, target = _compose(pixels.flatten(1), torch.tensor([5, 7]), garment, corner, 40)
    expected = torch.zeros(40, 40)
    expected[2:30, 3:23] = 200
    expected[22:40, 16:40] = 100
    assert torch.equal(image[0], expected)
    assert torch.equal(target[0], torch.where(expected == 200, 5, torch.where(expected == 100, 7, 0)))


def test_background_that_touches_a_garment_is_void_and_nothing_else():
    target = torch.zeros(1, 6, 7, dtype=torch.int64)
    target[0, 0, 0], target[0, 3, 4], target[0, 3, 5] = 3, 1, 2
    expected = torch.tensor(
        [
            [3, -100, 0, 0, 0, 0, 0],
            [-100, -100, 0, 0, 0, 0, 0],
            [0, 0, 0, -100, -100, -100, -100],
            [0, 0, 0, -100, 1, 2, -100],
            [0, 0, 0, -100, -100, -100, -100],
            [0, 0, 0, 0, 0, 0, 0],
        ]
    )
    assert torch.equal(_void_rim(target)[0], expected)


def test_background_is_black_and_garments_are_not(train):
    pixels = grey(train)
    assert not pixels[train.targets <= 0].any()
    assert pixels[train.targets > 0].min() >= 32


def test_the_training_scenes_are_normalised():
    whole = ComposedScenes("train")
    assert len(whole) == 2000
    assert abs(whole.images.mean()) < 1e-3
    assert abs(whole.images.std() - 1) < 1e-3


@pytest.mark.parametrize(("split", "value"), [("train", 200), ("test", 100)])
def test_a_scene_shows_images_of_its_own_split_alone(monkeypatch, split, value):
    def garments(split):
        pixels = torch.full((5, 28, 28), {"train": 200, "test": 100}[split])
        return ImageSet(pixels, torch.arange(5), tuple("abcde"), scale=255.0, mean=0.2860, std=0.3530)

    monkeypatch.setattr("kdx.datasets.scenes.FashionMnist", garments)
    assert grey(ComposedScenes(split, scenes=9)).unique().tolist() == [0, value]


def test_a_row_is_the_same_however_many_there_are_and_another_with_another_seed():
    few, more = ComposedScenes("test", scenes=3), ComposedScenes("test", scenes=9)
    assert torch.equal(few.images, more.images[:3])
    assert torch.equal(few.targets, more.targets[:3])
    assert not torch.equal(few.targets, ComposedScenes("test", scenes=3, seed=1).targets)
    assert not torch.equal(few.targets, ComposedScenes("train", scenes=3).targets)
    assert ComposedScenes("test", scenes=2, size=28).images.shape == (2, 1, 28, 28)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "valid"}, "split must be 'train' or 'test'; got 'valid'"),
        ({"scenes": 0}, "scenes must be 1 or more; got 0"),
        ({"size": 27}, "size must be at least 28, the size of a garment; got 27"),
    ],
)
def test_errors_say_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        ComposedScenes(**options)
