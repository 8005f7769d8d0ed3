"""Random transforms of images: right pixels, the stated distributions, and draws of seed, epoch and sample alone."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F

import kdx
from kdx.datasets import (
    ColorJitter,
    RandomCrop,
    RandomErasing,
    RandomFlip,
    RandomResizedCrop,
    ShiftFlip,
    TorchvisionTransform,
    Transforms,
)
from kdx.datasets.image_transforms import TRANSFORMS, make_transforms
from kdx.errors import RecipeError
from kdx.experiment.assembly import Assembly
from kdx.experiment.data import ExperimentData
from kdx.experiment.recipe_files import check_recipe, load_recipe
from tests.experiment.tiny import TINY


@pytest.mark.parametrize("name", sorted(TRANSFORMS.keys() - {"torchvision"}))
def test_a_view_depends_on_seed_epoch_and_sample_alone(name) -> None:
    images, index = torch.rand(24, 3, 8, 8), torch.arange(100, 124)
    made = TRANSFORMS[name](seed=3)
    state = torch.get_rng_state()
    views = made(images, index, epoch=2)
    assert torch.get_rng_state().equal(state)
    order = torch.randperm(24)
    assert made(images[order], index[order], epoch=2).equal(views[order])
    torch.testing.assert_close(made(images[5:7], index[5:7], epoch=2), views[5:7], rtol=0, atol=1e-6)
    assert not made(images, index, epoch=3).equal(views)
    assert not TRANSFORMS[name](seed=4)(images, index, epoch=2).equal(views)
    assert views.shape == images.shape
    assert views.dtype == images.dtype


def test_crop_and_flip_are_shift_and_flip() -> None:
    images, index = torch.rand(50, 1, 8, 8), torch.arange(50)
    assert RandomCrop(3, seed=1)(images, index, 4).equal(ShiftFlip(3, 0.0, seed=1)(images, index, 4))
    assert RandomFlip(0.3, seed=1)(images, index, 4).equal(ShiftFlip(0, 0.3, seed=1)(images, index, 4))
    assert RandomFlip(1.0)(images, index).equal(images.flip(3))


def test_a_resized_crop_is_the_box_scaled_to_the_image() -> None:
    H, W, size = 6, 9, 400
    ramp = torch.stack(
        torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
    ).double()  # [2, H, W]
    views = RandomResizedCrop((0.2, 0.9), (0.5, 2.0))(ramp.expand(size, -1, -1, -1), torch.arange(size))
    # of a ramp the view is a ramp: its slope is the box's side over the image's, away from the border
    rows, columns = views[:, 0, :, 0], views[:, 1, 0, :]
    tall, wide = (rows[:, 3] - rows[:, 2]) * H, (columns[:, 5] - columns[:, 4]) * W
    assert (tall <= H + 1e-9).all()
    assert (wide <= W + 1e-9).all()
    share = tall * wide / (H * W)
    free = (tall < H - 1e-6) & (wide < W - 1e-6)  # no side was cut off
    assert float(share[free].min()) >= 0.2 - 1e-9
    assert float(share[free].max()) <= 0.9 + 1e-9
    assert float((wide / tall)[free].min()) >= 0.5 - 1e-9
    assert float((wide / tall)[free].max()) <= 2 + 1e-9
    whole = RandomResizedCrop((1.0, 1.0), (1.5, 1.5))(ramp.expand(3, -1, -1, -1), torch.arange(3))
    torch.testing.assert_close(whole, ramp.expand(3, -1, -1, -1))
    big = F.interpolate(torch.rand(1, 1, 4, 4).double(), scale_factor=2, mode="nearest")
    part = RandomResizedCrop((0.25, 0.25), (1.0, 1.0))(big.expand(64, -1, -1, -1), torch.arange(64))
    assert part.min() >= big.min() - 1e-12
    assert part.max() <= big.max() + 1e-12


def test_colours_are_those_of_the_written_formula() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    pixels = torch.rand(200, 3, 5, 5, dtype=torch.float64) * 0.4 + 0.3
    images = (pixels - torch.tensor(mean, dtype=torch.float64)[:, None, None]) / torch.tensor(std, dtype=torch.float64)[
        :, None, None
    ]
    index, options = torch.arange(200), {"mean": mean, "std": std}

    def back(views):
        return (
            views * torch.tensor(std, dtype=torch.float64)[:, None, None]
            + torch.tensor(mean, dtype=torch.float64)[:, None, None]
        )

    bright = back(ColorJitter(0.3, 0, 0, **options)(images, index))
    factor = (bright / pixels)[:, 0, 0, 0]
    torch.testing.assert_close(bright, pixels * factor[:, None, None, None])
    assert 0.7 <= factor.min() < 0.75
    assert 1.25 < factor.max() <= 1.3
    grey = (pixels * torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)[:, None, None]).sum(1, keepdim=True)
    for name, base in (("contrast", grey.mean((2, 3), keepdim=True)), ("saturation", grey)):
        views = back(
            ColorJitter(**({"brightness": 0, "contrast": 0, "saturation": 0} | {name: 0.3}), **options)(images, index)
        )
        factor = ((views - base) / (pixels - base))[:, :1, :1, :1]
        torch.testing.assert_close(views, base + factor * (pixels - base))
        assert 0.69 < factor.min() < 0.75
    white = ColorJitter(1.0, 0, 0)(torch.full((50, 1, 2, 2), 0.9), torch.arange(50))
    assert float(white.max()) == 1.0
    with pytest.raises(ValueError, match=r"1 or 3 channels, got \[2, 4, 2, 2\]"):
        ColorJitter()(torch.zeros(2, 4, 2, 2), torch.arange(2))


def test_a_share_of_the_images_gets_one_box_of_the_stated_area() -> None:
    size = 4000
    views = RandomErasing(0.25, (0.1, 0.2), (1.0, 1.0), value=-7.0)(torch.zeros(size, 2, 20, 20), torch.arange(size))
    erased = (views == -7).double()
    assert erased[:, 0].equal(erased[:, 1])
    area = erased[:, 0].mean((1, 2))
    share = float((area > 0).double().mean())
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / size) ** 0.5
    assert float(area[area > 0].min()) > 0.08
    assert float(area.max()) < 0.23
    assert abs(float(area[area > 0].mean()) - 0.15) < 0.01
    for box in erased[area > 0][:50, 0]:
        rows, columns = box.amax(1), box.amax(0)
        assert box.equal(rows[:, None] * columns)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RandomCrop(-1), "padding must be a number of pixels, 0 or more; got -1"),
        (lambda: RandomFlip(1.5), "probability must be between 0 and 1; got 1.5"),
        (lambda: RandomErasing(2.0), "probability must be between 0 and 1"),
        (lambda: RandomErasing(scale=(0.5, 0.2)), r"scale must be two numbers above 0, the smaller first"),
        (lambda: RandomResizedCrop(scale=(0.5, 1.2)), "at most 1.0"),
        (lambda: RandomResizedCrop(ratio=(0.0, 1.2)), "ratio must be two numbers above 0"),
        (lambda: ColorJitter(contrast=2.0), "contrast must be between 0 and 1; got 2.0"),
    ],
)
def test_wrong_options_are_named(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def augmented(augment, **data):
    return {**TINY, "data": {**TINY["data"], "augment": augment, **data}}


LIST = [{"name": "random-crop", "padding": 1}, "random-flip", {"name": "random-erasing", "probability": 1.0}]


def test_a_recipe_lists_transforms_for_the_rows_and_for_views_which_are_drawn_apart() -> None:
    checked = check_recipe(augmented(LIST, views={"other": {"augment": LIST}, "plain": {}}))
    assert check_recipe(checked.dump()).dump() == checked.dump()
    assert [each["name"] for each in checked.dump()["data"]["augment"]] == [
        "random-crop",
        "random-flip",
        "random-erasing",
    ]
    data = ExperimentData(checked)
    data.all.set_epoch(3)
    batch = kdx.Batch.of(next(iter(Assembly(checked, [], None, data=data).data.training(data.all, 64))))
    plain = torch.stack([data.all.dataset[row][0] for row in batch.index.tolist()])
    assert batch.views["plain"].equal(plain)
    wanted = Transforms([RandomCrop(1, seed=0), RandomFlip(seed=1), RandomErasing(1.0, seed=2)])(plain, batch.index, 3)
    assert batch.inputs.equal(wanted)
    assert not batch.views["other"].equal(batch.inputs)
    other = Transforms([RandomCrop(1, seed=64), RandomFlip(seed=65), RandomErasing(1.0, seed=66)])(
        plain, batch.index, 3
    )
    assert batch.views["other"].equal(other)


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (["random-crp"], r"data\.augment\.0\.name: there is no transform 'random-crp'; .*random-crop"),
        ([{"name": "random-crop", "size": 3}], r"data\.augment\.0 \(random-crop\): unknown option 'size'"),
        ([{"name": "random-crop", "seed": 3}], r"unknown option 'seed'"),
        ([{"name": "random-flip", "probability": "often"}], r"data\.augment\.0 \(random-flip\)\.probability"),
        ([], r"data\.augment\.transforms"),
        ({"transforms": ["random-flip"], "shift": 1}, "shift and flip, or a list of transforms"),
        ({"shft": 1}, r"data\.augment\.shft: unknown key; .*shift"),
    ],
)
def test_a_wrong_list_is_named_before_anything_runs(augment, message) -> None:
    with pytest.raises(RecipeError, match=message):
        check_recipe(augmented(augment))
    with pytest.raises(RecipeError, match=message.replace(r"data\.augment", r"data\.views\.weak\.augment")):
        check_recipe(augmented(None, views={"weak": {"augment": augment}}))


def test_a_value_that_a_transform_refuses_is_named_with_its_place() -> None:
    with pytest.raises(RecipeError, match=r"data\.augment: padding must be a number of pixels"):
        ExperimentData(check_recipe(augmented([{"name": "random-crop", "padding": -1}])))


def test_colours_need_the_mean_and_std_of_the_data_set() -> None:
    digits = kdx.make("dataset", "digits", split="train")
    [jitter] = make_transforms([kdx.Ref("color-jitter", brightness=0.1)], 5, digits).transforms
    assert (jitter.mean, jitter.std) == (digits.preprocessing.mean, digits.preprocessing.std)
    assert jitter.seed == 5 * 64
    with pytest.raises(ValueError, match=r"color-jitter: .* object has no preprocessing .*remove it"):
        make_transforms([kdx.Ref("color-jitter")], 0, object())


def test_a_list_takes_the_place_of_shift_and_flip_on_the_command_line() -> None:
    over = load_recipe(augmented({"shift": 1}), ["data.augment=[{name: random-crop, padding: 2}, random-flip]"])
    assert over.dump()["data"]["augment"][0] == {"name": "random-crop", "padding": 2}
    assert load_recipe(augmented({"shift": 1})).dump()["data"]["augment"] == {"shift": 1, "flip": 0.5}


@pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning")
def test_a_store_of_listed_transforms_teaches(tmp_path) -> None:
    values = augmented(["random-flip", {"name": "random-erasing"}])
    values["teacher"] = {**TINY["teacher"], "store": {"views": 2}}
    kdx.run(values, folder=tmp_path / "run", report=False)


@pytest.fixture
def v2(monkeypatch):
    """As much of ``torchvision.transforms.v2`` as is called."""
    v2 = types.ModuleType("torchvision.transforms.v2")

    class Transform(torch.nn.Module):
        def __init__(self, strength: float = 1.0) -> None:
            super().__init__()
            self.strength = strength

    class Noise(Transform):
        def forward(self, pixels):
            assert pixels.dim() == 3
            assert 0 <= pixels.min() <= pixels.max() <= 1
            return pixels + self.strength * torch.rand_like(pixels)

    class Smaller(Transform):
        def forward(self, pixels):
            return pixels[:, 1:]

    v2.Transform, v2.Noise, v2.Smaller, v2.torch = Transform, Noise, Smaller, torch
    package, transforms = types.ModuleType("torchvision"), types.ModuleType("torchvision.transforms")
    transforms.v2 = v2
    for module in (package, transforms, v2):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return v2


def test_a_transform_of_torchvision_is_a_function_of_seed_epoch_and_sample(v2) -> None:
    ref = kdx.Ref("torchvision", transform="Noise", options={"strength": 0.5})
    digits = kdx.make("dataset", "digits", split="train")
    augment = make_transforms([ref], 1, digits)
    images, index = digits.images[:8], torch.arange(8)
    state = torch.get_rng_state()
    views = augment(images, index, 2)
    assert torch.get_rng_state().equal(state)
    order = torch.randperm(8)
    assert augment(images[order], index[order], 2).equal(views[order])
    assert not augment(images, index, 3).equal(views)
    added = (views - images) * digits.std
    assert -1e-6 <= float(added.min()) < 0.05
    assert 0.45 < float(added.max()) <= 0.5 + 1e-6
    assert len({round(float(each), 4) for each in added.mean((1, 2, 3))}) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": "Nois"}, "torchvision.transforms.v2 has none named 'Nois'"),
        ({"transform": "torch"}, "has none named 'torch'"),
        ({"transform": "Noise", "options": {"size": 2}}, "options: Noise refuses {'size': 2}"),
    ],
)
def test_a_wrong_transform_of_torchvision_is_named(options, message, v2) -> None:
    with pytest.raises(RecipeError, match=message):
        ExperimentData(check_recipe(augmented([{"name": "torchvision", **options}])))


def test_a_transform_that_changes_the_shape_is_named(v2) -> None:
    with pytest.raises(ValueError, match=r"Smaller makes \[1, 7, 8\] of an image \[1, 8, 8\]"):
        TorchvisionTransform("Smaller")(torch.zeros(1, 1, 8, 8), torch.arange(1))


def test_without_torchvision_the_error_says_what_to_install_and_to_take(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(RecipeError, match=r"pip install torchvision`, or take random-crop"):
        ExperimentData(check_recipe(augmented([{"name": "torchvision", "transform": "RandomAffine"}])))
