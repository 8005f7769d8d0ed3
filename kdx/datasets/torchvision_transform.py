"""Random transforms of torchvision, each made a pure function of ``(seed, epoch, index)``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kdx import rng
from kdx.datasets.augment import uniform

__all__ = ["TorchvisionTransform"]


class TorchvisionTransform:
    """One of torchvision's v2 transforms, for a list in ``data.augment``.

    It sees each image alone, with pixels from 0 to 1 as they were before they were normalised, and draws from a random
    state of its own, which seed, epoch and sample decide: slower than kdx's own transforms, and as reproducible.

    Args:
        transform: the class in ``torchvision.transforms.v2``, as ``"RandomAffine"``.
        options: its arguments, as ``{degrees: 10}``.
        mean, std: by channel, with which the images were normalised; a recipe takes those of the data set.
        seed: another seed gives other views.

    Raises:
        ImportError: torchvision is not installed, or is one for another torch.
        ValueError: torchvision has no such transform, or it refuses the options.
    """

    def __init__(
        self,
        transform: str,
        options: dict[str, Any] | None = None,
        *,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        seed: int = 0,
    ) -> None:
        try:
            from torchvision.transforms import v2  # type: ignore[import-not-found]
        except (ImportError, RuntimeError) as error:  # one for another torch raises RuntimeError
            raise ImportError(
                f"the transform torchvision needs a torchvision that goes with this torch ({error}): `pip install "
                "torchvision`, or take random-crop, random-flip, random-resized-crop, color-jitter or random-erasing",
                name="torchvision",
            ) from error
        made: Any = getattr(v2, transform, None)
        if not (isinstance(made, type) and issubclass(made, v2.Transform)):
            raise ValueError(f"transform: torchvision.transforms.v2 has none named {transform!r}")
        given: Mapping[str, Any] = options or {}
        try:
            self.transform: Any = made(**given)
        except (TypeError, ValueError) as error:
            raise ValueError(f"options: {transform} refuses {dict(given)}: {error}") from error
        self.mean, self.std, self.seed = tuple(mean), tuple(std), seed

    def __call__(self, images: Tensor, index: Tensor, epoch: int = 0) -> Tensor:
        """The views ``[B, C, H, W]`` of images ``[B, C, H, W]`` with the rows ``index`` ``[B]`` in an epoch.

        Raises:
            ValueError: the transform changes the shape of an image.
        """
        mean, std = (images.new_tensor(each)[:, None, None] for each in (self.mean, self.std))
        seeds = (uniform(self.seed, epoch, index.cpu(), count=1)[:, 0] * 2**53).long().tolist()
        views = []
        with rng.isolated():
            for pixels, seed in zip((images * std + mean).clamp(0, 1), seeds, strict=True):
                torch.manual_seed(seed)
                view = self.transform(pixels)
                if view.shape != pixels.shape:
                    raise ValueError(
                        f"{type(self.transform).__name__} makes {list(view.shape)} of an image {list(pixels.shape)}; "
                        "give it options that keep the shape"
                    )
                views.append(view)
        return (torch.stack(views) - mean) / std
