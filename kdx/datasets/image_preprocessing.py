"""Images of any size, brought to one and normalised."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from kdx.datasets.preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["IMAGENET", "ImagePreprocessing", "read_image"]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's training images, by channel, of values from 0 to 1."""
Size = Annotated[int, Field(ge=1)]


class ImagePreprocessing(Preprocessing):
    """Images: scaled and cut to one size, to 0 .. 1, and normalised by channel.

    Args:
        size: ``(height, width)`` of what a model sees.
        fit: what becomes of another aspect ratio. ``crop``: scaled until it covers the size, then the middle is kept;
            ``pad``: scaled until it fits in, the rest is the mean; ``stretch``: scaled to it.
        resize: with ``crop`` the shorter side is scaled to this many pixels first, as 256 before a crop of 224; None:
            as few as cover the size.
        grey: one channel instead of three.
        mean, std: for each channel, of values from 0 to 1.
    """

    kind: Literal["image"] = "image"
    size: tuple[Size, Size]
    fit: Literal["crop", "pad", "stretch"] = "crop"
    resize: Size | None = None
    grey: bool = False
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @model_validator(mode="after")
    def _channels(self) -> ImagePreprocessing:
        channels = 1 if self.grey else 3
        if len(self.mean) != channels or len(self.std) != channels or not all(each > 0 for each in self.std):
            raise ValueError(
                f"expected mean and std of {channels} channel(s), std above 0; got {self.mean} and {self.std}"
            )
        if self.resize is not None and (self.fit != "crop" or self.resize < max(self.size)):
            raise ValueError(f"resize={self.resize} goes with fit='crop', and a size that is not above it")
        return self

    def __call__(self, image: Image.Image) -> Tensor:
        """The input ``[C, height, width]``, float32, of an image of any size and mode.

        An image that says how it is to be turned (EXIF) is turned; 16 bits become 8; transparency is dropped.
        """
        from PIL import Image, ImageOps

        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # Pillow clips 16 bits to white
            image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
        image = image.convert("L" if self.grey else "RGB")
        height, width = self.size
        if self.fit == "stretch":
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        elif self.fit == "crop":
            image = self._cropped(image)
        scale = min(width / image.width, height / image.height)
        if image.size != (width, height):  # what is left is fit="pad"
            inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
            image = image.resize(inner, Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255)  # [h, w] or [h, w, 3]
        pixels = pixels.unsqueeze(0) if self.grey else pixels.permute(2, 0, 1)
        mean, std = (torch.tensor(each)[:, None, None] for each in (self.mean, self.std))
        normalised = (pixels - mean) / std
        if image.size == (width, height):
            return normalised
        padded = torch.zeros(len(pixels), height, width)
        top, left = (height - image.height) // 2, (width - image.width) // 2
        padded[:, top : top + image.height, left : left + image.width] = normalised
        return padded

    def _cropped(self, image: Image.Image) -> Image.Image:
        """The middle of the image, by the arithmetic of torchvision's Resize and CenterCrop."""
        from PIL import Image

        height, width = self.size
        if self.resize is not None:
            shorter, scaled = min(image.size), self.resize
            sides = [scaled if side == shorter else int(scaled * side / shorter) for side in image.size]
        else:
            scale = max(width / image.width, height / image.height)
            sides = [max(width, round(image.width * scale)), max(height, round(image.height * scale))]
        image = image.resize((sides[0], sides[1]), Image.Resampling.BILINEAR)
        top, left = round((sides[1] - height) / 2), round((sides[0] - width) / 2)
        return image.crop((left, top, left + width, top + height))

    def read(self, file: Path) -> Iterator[tuple[str, Tensor]]:
        """The one input in a file, with its name.

        Raises:
            ValueError: it is no image.
        """
        yield str(file), self(read_image(file))


def read_image(file: Path) -> Image.Image:
    """An image from a file, decoded whole.

    Raises:
        ValueError: it is none, or damaged; the file is named.
    """
    from PIL import Image

    try:
        with Image.open(file) as opened:
            opened.load()
            return opened.copy()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read as an image ({error}); remove it or save it again") from error
