"""Small data sets that need no download, and tools for rows and labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdx.lazy import exports

if TYPE_CHECKING:
    from kdx.datasets.augment import ShiftFlip as ShiftFlip
    from kdx.datasets.contract import check_dataset as check_dataset
    from kdx.datasets.digits import Digits as Digits
    from kdx.datasets.electrocardiogram import Electrocardiogram as Electrocardiogram
    from kdx.datasets.fashion import FashionMnist as FashionMnist
    from kdx.datasets.images import ImageSet as ImageSet
    from kdx.datasets.noise import symmetric_noise as symmetric_noise
    from kdx.datasets.resized import Resized as Resized
    from kdx.datasets.sample_stream import SampleStream as SampleStream
    from kdx.datasets.samplers import SameClassPairs as SameClassPairs
    from kdx.datasets.scenes import ComposedScenes as ComposedScenes
    from kdx.datasets.splits import few_labels as few_labels
    from kdx.datasets.splits import train_validation_split as train_validation_split
    from kdx.datasets.stress import WordStress as WordStress
    from kdx.datasets.view import Transform as Transform
    from kdx.datasets.view import View as View
    from kdx.datasets.word_ids import WordIds as WordIds
    from kdx.datasets.wordnet import WordNetNouns as WordNetNouns
    from kdx.datasets.wordnet import WordNetWords as WordNetWords
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "kdx.datasets.augment": ["ShiftFlip"],
            "kdx.datasets.contract": ["check_dataset"],
            "kdx.datasets.digits": ["Digits"],
            "kdx.datasets.electrocardiogram": ["Electrocardiogram"],
            "kdx.datasets.fashion": ["FashionMnist"],
            "kdx.datasets.images": ["ImageSet"],
            "kdx.datasets.noise": ["symmetric_noise"],
            "kdx.datasets.resized": ["Resized"],
            "kdx.datasets.sample_stream": ["SampleStream"],
            "kdx.datasets.samplers": ["SameClassPairs"],
            "kdx.datasets.scenes": ["ComposedScenes"],
            "kdx.datasets.splits": ["few_labels", "train_validation_split"],
            "kdx.datasets.stress": ["WordStress"],
            "kdx.datasets.view": ["Transform", "View"],
            "kdx.datasets.word_ids": ["WordIds"],
            "kdx.datasets.wordnet": ["WordNetNouns", "WordNetWords"],
        },
    )
