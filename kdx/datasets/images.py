"""A labelled set of small images held in memory."""

from __future__ import annotations

from torch import Tensor
from torch.utils.data import Dataset

from kdx.datasets.image_preprocessing import ImagePreprocessing

__all__ = ["ImageSet"]


class ImageSet(Dataset[tuple[Tensor, int]]):
    """Labelled grey images in one tensor; item ``i`` is ``(image, label)``.

    Args:
        pixels: uint8 or float images, ``[N, H, W]``.
        labels: class numbers, ``[N]``, each in ``0 .. len(classes) - 1``.
        classes: the name of each class.
        scale: the value of a white pixel; pixels are divided by it before they are normalised.
        mean: mean of the scaled pixels of the set that models are trained on.
        std: standard deviation of the scaled pixels of that set.

    Attributes:
        images: float32, ``[N, 1, H, W]``, ``(pixels / scale - mean) / std``.
        targets: int64, ``[N]``.
        classes: the name of each class.
        num_classes: the number of classes.
        input_shape: ``(1, H, W)``.
        mean: as given.
        std: as given.
        preprocessing: what makes an image in a file one of these, a :class:`kdx.datasets.ImagePreprocessing`.

    """

    def __init__(
        self, pixels: Tensor, labels: Tensor, classes: tuple[str, ...], *, scale: float, mean: float, std: float
    ) -> None:
        if pixels.dim() != 3 or labels.shape != pixels.shape[:1]:
            raise ValueError(
                f"pixels must be [N, H, W] and labels [N]; got {list(pixels.shape)} and {list(labels.shape)}"
            )
        self.images = pixels.float().div_(scale).sub_(mean).div_(std).unsqueeze(1)  # [N, 1, H, W]
        self.targets = labels.long()
        self.classes = classes
        self.num_classes = len(classes)
        self.input_shape: tuple[int, int, int] = (1, pixels.shape[1], pixels.shape[2])
        self.mean = mean
        self.std = std
        self.preprocessing = ImagePreprocessing(
            size=self.input_shape[1:], fit="stretch", grey=True, mean=(mean,), std=(std,)
        )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The image ``[1, H, W]`` and the label of row ``index``."""
        return self.images[index], int(self.targets[index])
