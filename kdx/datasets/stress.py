"""Words as phones, with the stress of every vowel."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from kdx.batch import IGNORE
from kdx.datasets.embedded import check_split, embedded_arrays, lines

__all__ = ["WordStress"]

LENGTH = 14
CONSONANT = 255


class WordStress(Dataset[tuple[Tensor, Tensor]]):
    """English words as phones, to be tagged with the stress of each vowel: token classification.

    20,000 words of two syllables or more are embedded, from the CMU Pronouncing Dictionary (Carnegie Mellon University
    1993-2015, BSD licence, https://github.com/cmusphinx/cmudict). A consonant has no stress: its target is void
    (``-100``), as that of the padding is. All words that begin with the same four letters are in one split, so that no
    inflected form of a training word is in the test.

    Args:
        split: ``"train"`` (16,000 words) or ``"test"`` (4,000).

    Attributes:
        ids: int64, ``[N, 14]``: phones 1 .. 39, 0 after the end of a word.
        targets: int64, ``[N, 14]``: 0 no stress, 1 primary, 2 secondary, ``-100`` consonants and padding.
        words: the words.
        phones: the name of each id; ``""`` is the padding.
        classes: the name of each class.
        num_classes: 3.
        input_shape: ``(14,)``.
        vocabulary: 40, the number of ids, for the models' option of this name.

    Raises:
        ValueError: ``split`` is another word.

    Example:
        >>> from kdx.datasets import WordStress
        >>> test = WordStress("test")
        >>> ids, stress = test[0]
        >>> test.words[0], [test.phones[id] for id in ids[ids > 0]], stress[ids > 0].tolist()
        ('aancor', ['AA', 'N', 'K', 'AO', 'R'], [1, -100, -100, 2, -100])

    """

    model_options: ClassVar[tuple[str, ...]] = ("vocabulary",)

    def __init__(self, split: Literal["train", "test"] = "train") -> None:
        check_split(split)
        names = (f"{split}_{part}" for part in ("words", "counts", "phones", "stress"))
        known, words, counts, phones, stress = embedded_arrays("cmudict.npz", "phones", *names)
        self.words = tuple(lines(words))
        self.phones = ("", *lines(known))
        filled = torch.arange(LENGTH) < torch.from_numpy(counts)[:, None]  # [N, L]
        self.ids = torch.zeros(filled.shape, dtype=torch.int64)
        self.ids[filled] = torch.from_numpy(phones).long()
        levels = torch.from_numpy(stress).long()
        self.targets = torch.full(filled.shape, IGNORE)
        self.targets[filled] = levels.masked_fill(levels == CONSONANT, IGNORE)
        self.classes = ("no stress", "primary stress", "secondary stress")
        self.num_classes = len(self.classes)
        self.input_shape = (LENGTH,)
        self.vocabulary = len(self.phones)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The phones ``[14]`` of row ``index`` and their stress ``[14]``."""
        return self.ids[index], self.targets[index]
