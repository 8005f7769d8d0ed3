"""Random transforms of images, each a pure function of ``(seed, epoch, index)``, for a list in ``data.augment``."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from kdx.datasets.augment import ShiftFlip, uniform
from kdx.datasets.torchvision_transform import TorchvisionTransform
from kdx.errors import RecipeError, nearest
from kdx.options import check_options
from kdx.ref import Ref

__all__ = [
    "TRANSFORMS",
    "ColorJitter",
    "RandomCrop",
    "RandomErasing",
    "RandomFlip",
    "RandomResizedCrop",
    "Transforms",
    "check_transform",
    "make_transforms",
]

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in brightness (ITU-R BT.601), as in Pillow."""
APART = 64
"""Most transforms in a list; their seeds lie apart."""


class _Transform(Protocol):
    def __call__(self, images: Tensor, index: Tensor, epoch: int = 0) -> Tensor: ...


class RandomCrop(ShiftFlip):
    """Pads every side and crops the old size somewhere, as is usual on CIFAR (He et al. 2015, arXiv:1512.03385).

    Args:
        padding: pixels on every side.
        fill: their value after normalisation; None: the smallest one of each image.
        seed: another seed gives other places.
    """

    def __init__(self, padding: int = 4, *, fill: float | None = None, seed: int = 0) -> None:
        if padding < 0:
            raise ValueError(f"padding must be a number of pixels, 0 or more; got {padding}")
        super().__init__(padding, 0.0, fill=fill, seed=seed)


class RandomFlip(ShiftFlip):
    """Mirrors left and right at random.

    Args:
        probability: of a mirror image.
        seed: another seed mirrors others.
    """

    def __init__(self, probability: float = 0.5, *, seed: int = 0) -> None:
        _check_probability(probability)
        super().__init__(0, probability, seed=seed)


class RandomResizedCrop:
    """Cuts out a part of random area and shape and scales it to the old size (Szegedy et al. 2014, arXiv:1409.4842).

    The area is uniform, the logarithm of the aspect ratio too; a side that would be longer than the image is as long as
    it. Scaled linearly between pixels.

    Args:
        scale: smallest and largest area, as a share of the image's.
        ratio: smallest and largest width / height.
        seed: another seed gives other parts.
    """

    def __init__(
        self,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (0.75, 4 / 3),
        *,
        seed: int = 0,
    ) -> None:
        _check_range("scale", scale, most=1.0)
        _check_range("ratio", ratio)
        self.scale, self.ratio, self.seed = scale, ratio, seed

    def __call__(self, images: Tensor, index: Tensor, epoch: int = 0) -> Tensor:
        """The parts ``[B, C, H, W]`` of images ``[B, C, H, W]`` with the rows ``index`` ``[B]`` in an epoch."""
        H, W = images.shape[2:]
        height, width, top, left = _boxes(self.seed, epoch, index, H, W, self.scale, self.ratio)
        down = top[:, None] + (torch.arange(H) + 0.5) * height[:, None] / H  # [B, H], in pixels of the source
        right = left[:, None] + (torch.arange(W) + 0.5) * width[:, None] / W  # [B, W]
        grid = torch.stack(
            [(2 * right / W - 1)[:, None, :].expand(-1, H, -1), (2 * down / H - 1)[:, :, None].expand(-1, -1, W)], -1
        )
        return F.grid_sample(images, grid.to(images), padding_mode="border", align_corners=False)


class ColorJitter:
    """Changes brightness, contrast and saturation, in this order, each by a random factor of ``1 - x`` to ``1 + x``.

    It works on the pixels from 0 to 1 that the images had before they were normalised, and cuts them off there.

    Args:
        brightness, contrast, saturation: x, from 0 to 1; 0 leaves it as it is. Grey images have no saturation.
        mean, std: by channel, with which the images were normalised; a recipe takes those of the data set.
        seed: another seed gives other factors.
    """

    def __init__(
        self,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.4,
        *,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        seed: int = 0,
    ) -> None:
        self.strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        for name, each in self.strengths.items():
            if not 0.0 <= each <= 1.0:
                raise ValueError(f"{name} must be between 0 and 1; got {each}")
        self.mean, self.std, self.seed = tuple(mean), tuple(std), seed

    def __call__(self, images: Tensor, index: Tensor, epoch: int = 0) -> Tensor:
        """The changed images ``[B, C, H, W]``, of 1 or 3 channels, with the rows ``index`` ``[B]`` in an epoch."""
        if images.dim() != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"expected images [B, C, H, W] of 1 or 3 channels, got {list(images.shape)}")
        mean, std = (images.new_tensor(each)[:, None, None] for each in (self.mean, self.std))
        pixels, draws = images * std + mean, uniform(self.seed, epoch, index, count=3).to(images)
        for place, (name, strength) in enumerate(self.strengths.items()):
            factor = (1 + strength * (2 * draws[:, place] - 1))[:, None, None, None]
            weights = images.new_tensor(LUMA if images.shape[1] == 3 else (1.0,))[:, None, None]
            grey = (pixels * weights).sum(1, keepdim=True)
            base = {"brightness": torch.zeros_like(grey), "contrast": grey.mean((2, 3), keepdim=True)}.get(name, grey)
            pixels = (base + factor * (pixels - base)).clamp(0, 1)
        return (pixels - mean) / std


class RandomErasing:
    """Fills a random box of some images with one value (Zhong et al. 2017, arXiv:1708.04896).

    Args:
        probability: that an image gets a box.
        scale: smallest and largest area of it, as a share of the image's.
        ratio: smallest and largest width / height.
        value: after normalisation, so that 0 is the mean.
        seed: another seed gives other boxes.
    """

    def __init__(
        self,
        probability: float = 0.5,
        scale: tuple[float, float] = (0.02, 0.33),
        ratio: tuple[float, float] = (0.3, 3.3),
        *,
        value: float = 0.0,
        seed: int = 0,
    ) -> None:
        _check_probability(probability)
        _check_range("scale", scale, most=1.0)
        _check_range("ratio", ratio)
        self.probability, self.scale, self.ratio, self.value, self.seed = probability, scale, ratio, value, seed

    def __call__(self, images: Tensor, index: Tensor, epoch: int = 0) -> Tensor:
        """The images ``[B, C, H, W]``, some with a box, with the rows ``index`` ``[B]`` in an epoch."""
        H, W = images.shape[2:]
        height, width, top, left = (
            each[:, None].round() for each in _boxes(self.seed, epoch, index, H, W, self.scale, self.ratio)
        )
        rows, columns = torch.arange(H), torch.arange(W)
        inside = ((rows >= top) & (rows < top + height))[:, :, None] & ((columns >= left) & (columns < left + width))[
            :, None, :
        ]
        chosen = uniform(self.seed, epoch, index, count=5)[:, 4] < self.probability
        erased = (inside & chosen[:, None, None]).unsqueeze(1).to(images.device)
        return torch.where(erased, images.new_tensor(self.value), images)


TRANSFORMS: Mapping[str, Callable[..., _Transform]] = {
    "random-crop": RandomCrop,
    "random-flip": RandomFlip,
    "random-resized-crop": RandomResizedCrop,
    "color-jitter": ColorJitter,
    "random-erasing": RandomErasing,
    "torchvision": TorchvisionTransform,
}
"""Name in a recipe -> transform."""
SUPPLIED = frozenset({"seed", "mean", "std"})
"""Options that come from the recipe's seed and the data set."""


class Transforms:
    """Several transforms, one after the other.

    Args:
        transforms: each called as ``transform(images [B, C, H, W], index [B], epoch)``.

    Example:
        >>> augment = Transforms([RandomCrop(2, seed=1), RandomFlip(seed=2)])
        >>> augment(torch.rand(4, 3, 8, 8), torch.arange(4), epoch=0).shape
        torch.Size([4, 3, 8, 8])
    """

    def __init__(self, transforms: Sequence[_Transform]) -> None:
        self.transforms = list(transforms)

    def __call__(self, images: Tensor, index: Tensor, epoch: int = 0) -> Tensor:
        """The images after all transforms."""
        for transform in self.transforms:
            images = transform(images, index, epoch)
        return images


def check_transform(path: str, ref: Ref) -> dict[str, Any]:
    """The options of a transform that a recipe names, checked.

    Raises:
        RecipeError: there is none of this name, or an option is wrong; ``path`` says where.
    """
    if ref.name not in TRANSFORMS:
        raise RecipeError(f"{path}.name: there is no transform {ref.name!r}; {nearest(ref.name, TRANSFORMS)}")
    return check_options(f"{path} ({ref.name})", TRANSFORMS[ref.name], ref.options, supplied=SUPPLIED)


def make_transforms(refs: Sequence[Ref], seed: int, data: Any) -> Transforms:
    """The transforms that a recipe lists.

    Args:
        refs: in their order.
        seed: another seed gives other views.
        data: the data set; its ``preprocessing`` says how images were normalised.

    Raises:
        ValueError: the data set does not say what a transform needs of it.
    """
    made = []
    for place, ref in enumerate(refs):
        target = TRANSFORMS[ref.name]
        options = check_transform(f"data.augment.{place}", ref) | {"seed": seed * APART + place}
        if "mean" in inspect.signature(target).parameters:
            normalised: Any = getattr(data, "preprocessing", None)
            if not hasattr(normalised, "mean") or not hasattr(normalised, "std"):
                raise ValueError(
                    f"{ref.name}: it works on pixels from 0 to 1, and the data set {type(data).__name__} has no "
                    "preprocessing that says the mean and std of its images; remove it, or give the data set one"
                )
            options |= {"mean": normalised.mean, "std": normalised.std}
        made.append(target(**options))
    return Transforms(made)


def _boxes(
    seed: int,
    epoch: int,
    index: Tensor,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Height, width, top and left of a random box in each image, in pixels, float64 ``[B]``."""
    draws = uniform(seed, epoch, index.cpu(), count=4)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[:, 0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * draws[:, 1])
    tall = (area / aspect).sqrt().clamp(1, height)
    wide = (area * aspect).sqrt().clamp(1, width)
    return tall, wide, (height - tall) * draws[:, 2], (width - wide) * draws[:, 3]


def _check_probability(probability: float) -> None:
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"probability must be between 0 and 1; got {probability}")


def _check_range(name: str, given: tuple[float, float], most: float = math.inf) -> None:
    if not 0 < given[0] <= given[1] <= most:
        raise ValueError(f"{name} must be two numbers above 0, the smaller first, at most {most}; got {given}")
