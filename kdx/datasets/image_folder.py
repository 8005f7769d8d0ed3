"""Images in folders named for their classes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from kdx.datasets.embedded import check_split
from kdx.datasets.held_out import rows_of_split
from kdx.datasets.image_preprocessing import IMAGENET, ImagePreprocessing, read_image

__all__ = ["ImageFolder"]

ENDINGS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_SHOWN = 10


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Images in ``FOLDER/train/CLASS/`` and ``FOLDER/test/CLASS/``, or in ``FOLDER/CLASS/`` with a share for the test.

    Classes are the sorted names of the folders; files in folders below them count too, hidden ones and those of other
    endings do not. Every file is opened once at the start, which reads its header: one that is no image is refused
    then. Images are read when they are asked for. Those of other sizes are brought to one, see ``fit``.

    Args:
        split: ``"train"`` or ``"test"``.
        folder: holds ``train`` and ``test``, or the folders of the classes.
        size: height and width of what the models see, in pixels; one number for both.
        test: share of the images held out for the test, between 0 and 1, of every class, the same ones in every run;
            only of a folder without ``train`` and ``test``.
        fit: what becomes of another aspect ratio, ``crop``, ``pad`` or ``stretch``; see
            :class:`kdx.datasets.ImagePreprocessing`.
        resize: with ``crop``, pixels that the shorter side is scaled to first.
        grey: one channel instead of three.
        mean: by channel, of values from 0 to 1, for the normalisation. None: ImageNet's in colour, which is what models
            trained on it expect, 0.5 in grey.
        std: by channel, as ``mean``.
        damaged: ``"refuse"``: a file whose header is no image ends it, and one that is damaged behind its header ends
            the run when it is read; both are named. ``"leave-out"``: every file is read whole at the start, and those
            that cannot be are left out, with a warning that names them.

    Attributes:
        files: path of every image, sorted by class and name.
        targets: int64 ``[N]``.
        classes: the name of each class.
        num_classes: how many there are.
        input_shape: ``(3, H, W)`` or ``(1, H, W)``.
        preprocessing: what is done to an image, a :class:`kdx.datasets.ImagePreprocessing`.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: a class has no image, the test split another class than the training split, or a file is damaged.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> from PIL import Image
        >>> folder = Path(mkdtemp())
        >>> for name in ("cat", "dog"):
        ...     (folder / name).mkdir()
        ...     for number in range(4):
        ...         Image.new("RGB", (40, 30)).save(folder / name / f"{number}.png")
        >>> train = ImageFolder("train", folder=folder, size=16, test=0.25)
        >>> len(train), train.classes, train[0][0].shape
        (6, ('cat', 'dog'), torch.Size([3, 16, 16]))
    """

    def __init__(
        self,
        split: Literal["train", "test"] = "train",
        *,
        folder: str | Path,
        size: int | tuple[int, int] = 64,
        test: float | None = None,
        fit: Literal["crop", "pad", "stretch"] = "crop",
        resize: int | None = None,
        grey: bool = False,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        damaged: Literal["refuse", "leave-out"] = "refuse",
    ) -> None:
        check_split(split)
        if damaged not in ("refuse", "leave-out"):
            raise ValueError(f"damaged must be 'refuse' or 'leave-out', got {damaged!r}")
        usual = ((0.5,), (0.5,)) if grey else IMAGENET
        self.preprocessing = ImagePreprocessing(
            size=(size, size) if isinstance(size, int) else size,
            fit=fit,
            resize=resize,
            grey=grey,
            mean=usual[0] if mean is None else mean,
            std=usual[1] if std is None else std,
        )
        self.classes, found = _found(Path(folder), split, test)
        found = _readable(found, whole=damaged == "leave-out")
        labels = torch.tensor([number for _, number in found], dtype=torch.int64)
        for number, name in enumerate(self.classes) if test is not None or split == "train" else ():
            if not bool((labels == number).any()):
                raise ValueError(
                    f"folder: the class {name!r} has no image; put some there ({', '.join(sorted(ENDINGS))}), or "
                    "remove the folder"
                )
        rows = torch.arange(len(found)) if test is None else rows_of_split(labels, test, split)
        if not len(rows):
            raise ValueError(f"folder: {Path(folder) / split} holds no image in the folders of its classes")
        self.files = [found[row][0] for row in rows.tolist()]
        self.targets = labels[rows]
        self.num_classes = len(self.classes)
        self.input_shape = (1 if grey else 3, *self.preprocessing.size)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The image ``[C, H, W]`` float32 and the class of row ``index``."""
        return self.preprocessing(read_image(self.files[index])), int(self.targets[index])


def _found(folder: Path, split: str, test: float | None) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    """The classes, and every file that may be an image, with its class."""
    if not folder.is_dir():
        raise FileNotFoundError(f"folder: there is no folder {str(folder)!r}")
    parts = [name for name in ("train", "test") if (folder / name).is_dir()]
    if test is None:
        if len(parts) < 2:
            have = f"only {parts[0]}/" if parts else "neither train/ nor test/"
            raise FileNotFoundError(
                f"folder: {str(folder)!r} has {have}; expected train/CLASS/ and test/CLASS/ in it, or the folders of "
                "the classes and test=0.2, the share of images held out for the test"
            )
        classes = _folders(folder / "train")
        place = folder / split
        if strange := [name for name in _folders(place) if name not in classes]:
            raise ValueError(f"folder: the test split has a class {strange[0]!r} that the training split has not")
    else:
        if parts:
            raise ValueError(f"test: {str(folder)!r} has {' and '.join(parts)} already; remove test=")
        classes, place = _folders(folder), folder
    if not classes:
        raise ValueError(f"folder: {str(place)!r} has no folders, one for each class")
    return classes, [
        (path, number)
        for number, name in enumerate(classes)
        for path in sorted((place / name).rglob("*"))
        if path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()
    ]


def _folders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))


def _readable(files: Iterable[tuple[Path, int]], *, whole: bool) -> list[tuple[Path, int]]:
    """The files that are images: by their headers, of which all must be, or read whole, and others are left out."""
    from PIL import Image

    kept, lost = [], []
    for path, number in files:
        try:
            if whole:
                read_image(path)
            else:
                with Image.open(path):
                    pass
            kept.append((path, number))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            if not whole:
                raise ValueError(
                    f"{path} is no image that can be read ({error}); remove it, save it again, or give "
                    "damaged='leave-out', which leaves out all such files"
                ) from error
            lost.append(path)
    if lost:
        more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
        shown = ", ".join(map(str, lost[:_SHOWN]))
        warnings.warn(f"{len(lost)} files are no images or damaged and are left out: {shown}{more}", stacklevel=3)
    return kept
