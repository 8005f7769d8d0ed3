"""Data sets: of one's own files, and small ones that need no download; tools for rows and labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdx.lazy import exports

if TYPE_CHECKING:
    from kdx.datasets.array_preprocessing import ArrayPreprocessing as ArrayPreprocessing
    from kdx.datasets.augment import ShiftFlip as ShiftFlip
    from kdx.datasets.batch_maker import BatchMaker as BatchMaker
    from kdx.datasets.contract import check_dataset as check_dataset
    from kdx.datasets.csv_table import CsvTable as CsvTable
    from kdx.datasets.digits import Digits as Digits
    from kdx.datasets.electrocardiogram import Electrocardiogram as Electrocardiogram
    from kdx.datasets.fashion import FashionMnist as FashionMnist
    from kdx.datasets.generation import Generator as Generator
    from kdx.datasets.generation import HuggingFaceGenerator as HuggingFaceGenerator
    from kdx.datasets.generation import StepByStep as StepByStep
    from kdx.datasets.image_folder import ImageFolder as ImageFolder
    from kdx.datasets.image_preprocessing import ImagePreprocessing as ImagePreprocessing
    from kdx.datasets.image_transforms import ColorJitter as ColorJitter
    from kdx.datasets.image_transforms import RandomCrop as RandomCrop
    from kdx.datasets.image_transforms import RandomErasing as RandomErasing
    from kdx.datasets.image_transforms import RandomFlip as RandomFlip
    from kdx.datasets.image_transforms import RandomResizedCrop as RandomResizedCrop
    from kdx.datasets.image_transforms import Transforms as Transforms
    from kdx.datasets.images import ImageSet as ImageSet
    from kdx.datasets.noise import symmetric_noise as symmetric_noise
    from kdx.datasets.npz import NpzArrays as NpzArrays
    from kdx.datasets.preprocessing import Preprocessing as Preprocessing
    from kdx.datasets.preprocessing import preprocessing_of as preprocessing_of
    from kdx.datasets.resized import Resized as Resized
    from kdx.datasets.rollouts import Rollouts as Rollouts
    from kdx.datasets.sample_stream import SampleStream as SampleStream
    from kdx.datasets.samplers import SameClassPairs as SameClassPairs
    from kdx.datasets.scenes import ComposedScenes as ComposedScenes
    from kdx.datasets.splits import few_labels as few_labels
    from kdx.datasets.splits import train_validation_split as train_validation_split
    from kdx.datasets.stress import WordStress as WordStress
    from kdx.datasets.table_preprocessing import TablePreprocessing as TablePreprocessing
    from kdx.datasets.torchvision_transform import TorchvisionTransform as TorchvisionTransform
    from kdx.datasets.two_tokenisations import TwoTokenisations as TwoTokenisations
    from kdx.datasets.two_vocabularies import Tokens as Tokens
    from kdx.datasets.two_vocabularies import TwoVocabularies as TwoVocabularies
    from kdx.datasets.two_vocabularies import align as align
    from kdx.datasets.view import Transform as Transform
    from kdx.datasets.view import View as View
    from kdx.datasets.vllm_server import VllmServer as VllmServer
    from kdx.datasets.word_ids import WordIds as WordIds
    from kdx.datasets.wordnet import WordNetNouns as WordNetNouns
    from kdx.datasets.wordnet import WordNetWords as WordNetWords
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "kdx.datasets.array_preprocessing": ["ArrayPreprocessing"],
            "kdx.datasets.augment": ["ShiftFlip"],
            "kdx.datasets.batch_maker": ["BatchMaker"],
            "kdx.datasets.contract": ["check_dataset"],
            "kdx.datasets.csv_table": ["CsvTable"],
            "kdx.datasets.digits": ["Digits"],
            "kdx.datasets.electrocardiogram": ["Electrocardiogram"],
            "kdx.datasets.fashion": ["FashionMnist"],
            "kdx.datasets.generation": ["Generator", "HuggingFaceGenerator", "StepByStep"],
            "kdx.datasets.image_folder": ["ImageFolder"],
            "kdx.datasets.image_preprocessing": ["ImagePreprocessing"],
            "kdx.datasets.image_transforms": [
                "ColorJitter",
                "RandomCrop",
                "RandomErasing",
                "RandomFlip",
                "RandomResizedCrop",
                "Transforms",
            ],
            "kdx.datasets.images": ["ImageSet"],
            "kdx.datasets.noise": ["symmetric_noise"],
            "kdx.datasets.npz": ["NpzArrays"],
            "kdx.datasets.preprocessing": ["Preprocessing", "preprocessing_of"],
            "kdx.datasets.resized": ["Resized"],
            "kdx.datasets.rollouts": ["Rollouts"],
            "kdx.datasets.sample_stream": ["SampleStream"],
            "kdx.datasets.samplers": ["SameClassPairs"],
            "kdx.datasets.scenes": ["ComposedScenes"],
            "kdx.datasets.splits": ["few_labels", "train_validation_split"],
            "kdx.datasets.stress": ["WordStress"],
            "kdx.datasets.table_preprocessing": ["TablePreprocessing"],
            "kdx.datasets.torchvision_transform": ["TorchvisionTransform"],
            "kdx.datasets.two_tokenisations": ["TwoTokenisations"],
            "kdx.datasets.two_vocabularies": ["Tokens", "TwoVocabularies", "align"],
            "kdx.datasets.view": ["Transform", "View"],
            "kdx.datasets.vllm_server": ["VllmServer"],
            "kdx.datasets.word_ids": ["WordIds"],
            "kdx.datasets.wordnet": ["WordNetNouns", "WordNetWords"],
        },
    )
