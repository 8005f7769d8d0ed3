"""Scenes composed of Fashion-MNIST garments, with the class of every pixel."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from kdx.batch import IGNORE
from kdx.datasets.embedded import check_split
from kdx.datasets.fashion import FashionMnist

__all__ = ["ComposedScenes"]

SCENES = {"train": 2000, "test": 500}
GARMENT = 28
"""Height and width of a garment's image."""
SMALLEST, LARGEST = 2, 4
"""Garments in a scene."""
OPAQUE = 32
"""Grey value from which a pixel of an image is garment; sensor noise and soft edges are darker."""
MEAN, STD = 0.1670, 0.3061
"""Of the pixels, scaled to 0..1, of the 2,000 training scenes of seed 0."""


class ComposedScenes(Dataset[tuple[Tensor, Tensor]]):
    """Grey scenes composed of two to four Fashion-MNIST garments, to be segmented into eleven classes.

    The scenes are made up, not photographed: images of the embedded Fashion-MNIST subset
    (:class:`kdx.datasets.FashionMnist`) are laid at random places onto a black square, whole, one over the other. A
    pixel of at least 32 of 255 belongs to its garment and hides what lies under it. The target of a pixel is the
    garment that is seen there, 0 where there is none. Background pixels that touch a garment, diagonally too, are void
    (``-100``), as where a garment ends is a matter of the threshold. Scenes of the training split show training images
    alone, those of the test split test images.

    Row ``i`` is the same for the same split, size and seed, however many scenes there are.

    Args:
        split: ``"train"`` or ``"test"``.
        scenes: number of scenes; None makes 2,000 for training and 500 for the test.
        size: height and width of a scene in pixels, at least 28.
        seed: another seed gives other scenes.

    Attributes:
        images: float32, ``[N, 1, size, size]``, grey values scaled to 0..1, then normalised with ``mean`` and ``std``.
        targets: int64, ``[N, size, size]``: 0 background, 1 .. 10 garments, ``-100`` void.
        classes: the names of the eleven classes.
        num_classes: 11.
        input_shape: ``(1, size, size)``.
        mean: 0.1670, of the training scenes at their defaults.
        std: 0.3061, of the same.

    Raises:
        ValueError: ``split`` is another word, or ``scenes`` or ``size`` is too small.

    Example:
        >>> from kdx.datasets import ComposedScenes
        >>> test = ComposedScenes("test", scenes=3)
        >>> image, target = test[0]
        >>> image.shape, target.shape, test.classes[0]
        (torch.Size([1, 56, 56]), torch.Size([56, 56]), 'background')

    """

    def __init__(
        self, split: Literal["train", "test"] = "train", *, scenes: int | None = None, size: int = 56, seed: int = 0
    ) -> None:
        check_split(split)
        scenes = SCENES[split] if scenes is None else scenes
        if scenes < 1:
            raise ValueError(f"scenes must be 1 or more; got {scenes}")
        if size < GARMENT:
            raise ValueError(f"size must be at least {GARMENT}, the size of a garment; got {size}")
        garments = FashionMnist(split)
        pixels = ((garments.images * garments.std + garments.mean) * 255).round().flatten(1)  # [M, 28 * 28], 0 .. 255
        image, target = _compose(pixels, garments.targets + 1, *_places(scenes, split, len(garments), size, seed), size)
        self.images = image.div_(255).sub_(MEAN).div_(STD).unsqueeze(1)  # [N, 1, S, S]
        self.targets = _void_rim(target)  # [N, S, S]
        self.classes = ("background", *garments.classes)
        self.num_classes = len(self.classes)
        self.input_shape = (1, size, size)
        self.mean, self.std = MEAN, STD

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The scene ``[1, size, size]`` of row ``index`` and the classes of its pixels ``[size, size]``."""
        return self.images[index], self.targets[index]


def _places(scenes: int, split: str, images: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Which garments lie where: rows of images ``[N, 4]``, -1 for none, and the places of their corners ``[N, 4]``.

    A scene takes its numbers from one stream after the other scenes, so that further scenes change none.
    """
    drawn: npt.NDArray[np.float64] = np.random.default_rng([seed, list(SCENES).index(split)]).random(
        (scenes, 1 + 3 * LARGEST)
    )
    numbers = torch.from_numpy(drawn)
    present = SMALLEST + (numbers[:, :1] * (LARGEST - SMALLEST + 1)).long()  # [N, 1]
    image, top, left = numbers[:, 1:].reshape(scenes, 3, LARGEST).unbind(1)  # [N, 4] each
    garment = (image * images).long().masked_fill(torch.arange(LARGEST) >= present, -1)
    free = size - GARMENT + 1
    return garment, (top * free).long() * size + (left * free).long()


def _compose(pixels: Tensor, labels: Tensor, garment: Tensor, corner: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Lays garments onto black scenes, the first at the bottom: grey values and classes, ``[N, size, size]`` each."""
    image = torch.zeros(len(garment), size * size)
    target = torch.zeros(len(garment), size * size, dtype=torch.int64)
    square = torch.arange(GARMENT)
    offset = (square[:, None] * size + square).flatten()  # [28 * 28], from the corner
    for layer in range(LARGEST):
        scene = (garment[:, layer] >= 0).nonzero().squeeze(1)
        row = garment[scene, layer]
        value = pixels[row]
        place = scene[:, None] * (size * size) + corner[scene, layer, None] + offset  # in the flattened scenes
        opaque = value >= OPAQUE
        image.view(-1)[place[opaque]] = value[opaque]
        target.view(-1)[place[opaque]] = labels[row][:, None].expand_as(place)[opaque]
    return image.view(-1, size, size), target.view(-1, size, size)


def _void_rim(target: Tensor) -> Tensor:
    """The classes with background pixels that touch a garment made void."""
    garment = target > 0
    touched = F.max_pool2d(garment.float(), 3, stride=1, padding=1) > 0
    return target.masked_fill(touched & ~garment, IGNORE)
