"""Images in folders: sizes, modes, damaged files, empty classes, splits."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import kdx
from kdx.datasets import ImageFolder, ImagePreprocessing, preprocessing_of

RED, BLUE = (255, 0, 0), (0, 0, 255)
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Blue and red images of several sizes, in train and test, and files that are no images beside them."""
    for split in ("train", "test"):
        for name, colour in (("blue", BLUE), ("red", RED)):
            place = tmp_path / split / name
            place.mkdir(parents=True)
            for number, size in enumerate([(40, 20), (20, 40), (16, 16)]):
                Image.new("RGB", size, colour).save(place / f"{number}.png")
            (place / "notes.txt").write_text("no image")
            (place / "._0.png").write_text("a file of another system")
    return tmp_path


def plain(tmp_path: Path, **counts: int) -> Path:
    """Folders of classes alone."""
    for name, count in counts.items():
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / name / f"{number:02d}.jpg")
    return tmp_path


def test_images_of_several_sizes_are_brought_to_one_and_normalised(folder) -> None:
    train = kdx.make("dataset", "image-folder", folder=folder, size=16)
    assert (len(train), train.classes, train.num_classes, train.input_shape) == (6, ("blue", "red"), 2, (3, 16, 16))
    expected = ((torch.tensor([1.0, 0.0, 0.0]) - MEAN) / STD)[:, None, None].expand(3, 16, 16)
    for row in (3, 4, 5):
        image, label = train[row]
        assert label == 1
        torch.testing.assert_close(image, expected)
    assert train.targets.tolist() == [0, 0, 0, 1, 1, 1]


def test_folders_below_a_class_count_and_the_order_is_that_of_names(tmp_path) -> None:
    plain(tmp_path, a=2, b=2)
    (tmp_path / "a" / "more").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "a" / "more" / "x.PNG")
    train = ImageFolder("train", folder=tmp_path, test=0.2)
    test = ImageFolder("test", folder=tmp_path, test=0.2)
    assert len(train) + len(test) == 5
    assert train.files == sorted(train.files)


def test_a_share_is_held_out_of_every_class_and_is_always_the_same(tmp_path) -> None:
    plain(tmp_path, a=10, b=30)
    train, test = (ImageFolder(split, folder=tmp_path, test=0.2) for split in ("train", "test"))
    assert test.targets.bincount().tolist() == [2, 6]
    assert not set(train.files) & set(test.files)
    assert len(train) == 32
    assert ImageFolder("test", folder=tmp_path, test=0.2).files == test.files


@pytest.mark.parametrize(
    ("fit", "resize", "corner", "middle"),
    [("crop", None, 1.0, 1.0), ("stretch", None, 0.0, 1.0), ("pad", None, 0.5, 1.0), ("crop", 12, 1.0, 1.0)],
)
def test_the_fit_says_what_becomes_of_another_aspect_ratio(fit, resize, corner, middle) -> None:
    """A white square in the middle of a black strip: cropping keeps it alone, padding puts the mean around."""
    image = Image.new("L", (30, 10), 0)
    image.paste(255, (8, 0, 22, 10))
    size = (6, 6) if resize else (10, 10)
    found = ImagePreprocessing(size=size, fit=fit, resize=resize, grey=True, mean=(0.5,), std=(0.5,))(image)
    assert found.shape == (1, *size)
    assert (found[0, 0, 0].item() + 1) / 2 == pytest.approx(corner, abs=0.01)
    assert (found[0, size[0] // 2, size[1] // 2].item() + 1) / 2 == pytest.approx(middle, abs=0.01)


def test_a_crop_after_a_resize_is_torchvisions_by_hand() -> None:
    """Shorter side to 8 of 13x11: 9x8, as int(8 * 13 / 11) = 9; the middle 6x6 begins at round(1.5) = 2 and at 1."""
    pixels = np.random.default_rng(0).integers(0, 256, (11, 13, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    expected = np.asarray(image.resize((9, 8), Image.Resampling.BILINEAR))[1:7, 2:8]
    plain = ImagePreprocessing(size=(6, 6), resize=8, mean=(0.0,) * 3, std=(1.0,) * 3)
    torch.testing.assert_close(plain(image), torch.from_numpy(expected.astype(np.float32) / 255).permute(2, 0, 1))


def test_modes_and_orientation_that_photographs_have() -> None:
    same = ImagePreprocessing(size=(2, 4), fit="stretch", grey=True, mean=(0.0,), std=(1.0,))
    deep = Image.fromarray(np.full((2, 4), 0x8000, dtype=np.uint16))  # Pillow clips this to white
    assert same(deep).unique().tolist() == pytest.approx([128 / 255])
    assert same(Image.new("CMYK", (4, 2), (0, 0, 0, 0))).unique().tolist() == [1.0]
    assert same(Image.new("RGBA", (4, 2), (255, 255, 255, 0))).unique().tolist() == [1.0]
    assert same(Image.new("P", (4, 2))).shape == (1, 2, 4)
    turned = Image.new("L", (2, 4), 0)
    turned.paste(255, (0, 0, 2, 1))  # the top row is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    kept = io.BytesIO()
    turned.save(kept, "png", exif=exif)
    found = same(Image.open(kept))[0]
    assert found[:, -1].tolist() == [1.0, 1.0]
    assert found[:, :-1].unique().tolist() == [0.0]


def test_the_preprocessing_survives_as_plain_values_and_reads_files(folder) -> None:
    train = ImageFolder("train", folder=folder, size=(8, 12), fit="pad")
    again = preprocessing_of(train.preprocessing.as_dict())
    assert again == train.preprocessing
    [(name, image)] = again.read(train.files[1])
    assert name == str(train.files[1])
    assert image.equal(train[1][0])
    with pytest.raises(ValueError, match="expected a preprocessing of the kind image, table, array"):
        preprocessing_of({"kind": "os:system"})


@pytest.mark.parametrize("content", [b"", b"not a png", b"\x89PNG\r\n\x1a\n" + bytes(40)], ids=["empty", "text", "cut"])
def test_a_file_that_is_no_image_is_named_at_the_start(folder, content) -> None:
    (folder / "train/blue/0.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"blue.0\.png is no image that can be read .*damaged='leave-out'"):
        ImageFolder("train", folder=folder)


def test_an_image_damaged_behind_its_header_is_named_when_it_is_read_or_left_out(tmp_path) -> None:
    plain(tmp_path, a=4, b=4)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "b/00.jpg")
    whole = (tmp_path / "b/00.jpg").read_bytes()
    (tmp_path / "b/00.jpg").write_bytes(whole[: len(whole) // 2])
    every = [ImageFolder(split, folder=tmp_path, test=0.25) for split in ("train", "test")]
    with pytest.raises(ValueError, match=r"b.00\.jpg cannot be read as an image"):
        [each[row] for each in every for row in range(len(each))]
    with pytest.warns(UserWarning, match=r"1 files are no images or damaged and are left out: .*b.00\.jpg"):
        left = ImageFolder("train", folder=tmp_path, test=0.25, damaged="leave-out")
    assert len(left) + round(7 * 0.25) == 7
    assert tmp_path / "b/00.jpg" not in left.files


def test_a_damaged_image_ends_a_run_with_its_name(tmp_path) -> None:
    plain(tmp_path, a=4, b=4)
    for path in tmp_path.glob("a/*.jpg"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:-500])
    loader = torch.utils.data.DataLoader(ImageFolder("train", folder=tmp_path, test=0.25, size=8), 4)
    student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    with pytest.raises(kdx.errors.ComponentError, match=r"the data \(ImageFolder of kdx .*a.0\d\.jpg cannot be read"):
        kdx.fit(kdx.Supervised(student), loader, device="cpu")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"split": "val"}, ValueError, "split"),
        ({"size": 0}, ValueError, "greater than or equal to 1"),
        ({"folder": "nowhere"}, FileNotFoundError, "there is no folder 'nowhere'"),
        ({"test": 0.2}, ValueError, "has train and test already; remove test="),
        ({"mean": (0.5,)}, ValueError, "expected mean and std of 3 channel"),
        ({"resize": 8, "size": 16}, ValueError, "resize=8 goes with fit='crop'"),
        ({"damaged": "skip"}, ValueError, "'refuse' or 'leave-out', got 'skip'"),
    ],
)
def test_bad_options_are_named(folder, change, error, message) -> None:
    with pytest.raises(error, match=message):
        ImageFolder(**({"split": "train", "folder": folder} | change))


def test_folders_that_are_not_what_they_should_be_are_named(folder, tmp_path) -> None:
    (folder / "test/green").mkdir()
    with pytest.raises(ValueError, match="the test split has a class 'green'"):
        ImageFolder("test", folder=folder)
    (folder / "test/green").rmdir()
    (folder / "train/green").mkdir()
    with pytest.raises(ValueError, match="the class 'green' has no image; put some there"):
        ImageFolder("train", folder=folder)
    (tmp_path / "plain").mkdir()
    with pytest.raises(FileNotFoundError, match=r"neither train/ nor test/; expected .* test=0\.2"):
        ImageFolder("train", folder=tmp_path / "plain")
    with pytest.raises(ValueError, match="has no folders, one for each class"):
        ImageFolder("train", folder=tmp_path / "plain", test=0.5)
    (tmp_path / "plain/train").mkdir()
    with pytest.raises(FileNotFoundError, match="only train/"):
        ImageFolder("train", folder=tmp_path / "plain")
