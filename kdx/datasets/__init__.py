"""Small real image sets that need no download, and what one does with their rows and labels."""

from kdx.datasets.augment import ShiftFlip
from kdx.datasets.digits import Digits
from kdx.datasets.fashion import FashionMnist
from kdx.datasets.images import ImageSet
from kdx.datasets.noise import symmetric_noise
from kdx.datasets.sample_stream import SampleStream
from kdx.datasets.samplers import SameClassPairs
from kdx.datasets.splits import few_labels, train_validation_split
from kdx.datasets.view import View

__all__ = [
    "Digits",
    "FashionMnist",
    "ImageSet",
    "SameClassPairs",
    "SampleStream",
    "ShiftFlip",
    "View",
    "few_labels",
    "symmetric_noise",
    "train_validation_split",
]
