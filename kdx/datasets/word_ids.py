"""Texts as ids of whole words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["WordIds"]

SPECIAL = 2
"""Ids that are no word: 0 padding, 1 a word that is not known."""


class WordIds:
    """A vocabulary of the commonest words of some texts, and texts as ids of it.

    A word is a run of the letters a to z in the lower-cased text. Id 0 is padding, 1 a word that is not in the
    vocabulary, the others go by frequency, words that are as frequent by the alphabet.

    Args:
        texts: the texts of the training split.
        vocabulary: number of ids at most, at least 3.
        length: L, ids of a text; longer ones are cut, shorter ones padded.

    Attributes:
        vocabulary: number of ids.

    Raises:
        ValueError: ``vocabulary`` is below 3 or ``length`` below 1.

    Example:
        >>> ids = WordIds(["a red sea", "a sea"], vocabulary=4, length=4)
        >>> ids(["the sea, a SEA"]).tolist()
        [[1, 3, 2, 3]]
    """

    def __init__(self, texts: Iterable[str], *, vocabulary: int, length: int) -> None:
        if vocabulary <= SPECIAL or length < 1:
            raise ValueError(
                f"vocabulary must be 3 or more and length 1 or more; got vocabulary={vocabulary}, length={length}"
            )
        counts = Counter(word for text in texts for word in _words(text))
        known = sorted(counts, key=lambda word: (-counts[word], word))[: vocabulary - SPECIAL]
        self.number = {word: k for k, word in enumerate(known, start=SPECIAL)}
        self.vocabulary = len(known) + SPECIAL
        self.length = length

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Ids of texts, int64 ``[N, L]``."""
        rows = [[self.number.get(word, 1) for word in _words(text)[: self.length]] for text in texts]
        return torch.tensor([row + [0] * (self.length - len(row)) for row in rows])


def _words(text: str) -> list[str]:
    return re.findall("[a-z]+", text.lower())
