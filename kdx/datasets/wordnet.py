"""Words of WordNet and what their senses are about."""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from kdx.datasets.embedded import check_split, embedded_arrays, lines
from kdx.datasets.word_ids import WordIds

__all__ = ["WordNetNouns", "WordNetWords"]

NOUNS = (
    *("act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event", "feeling", "food"),
    *("group", "location", "motive", "object", "person", "phenomenon", "plant", "possession", "process", "quantity"),
    *("relation", "shape", "state", "substance", "time"),
)
VERBS = (
    *("body", "change", "cognition", "communication", "competition", "consumption", "contact", "creation"),
    *("emotion", "motion", "perception", "possession", "social", "stative", "weather"),
)
FIRST_NOUN, FIRST_VERB = 4, 29
"""Numbers of the lexicographer files of the first of each (lexnames, section 5WN of WordNet's manual)."""
RARE = {"noun.motive", "noun.phenomenon", "noun.relation", "noun.shape", "verb.consumption", "verb.weather"}
"""Classes that fewer than a hundred of the training words have."""


class Glosses(NamedTuple):
    """The words of a split and their senses.

    ``senses[k]`` are the numbers of the senses of ``words[k]``, each with a gloss and the number of its lexicographer
    file.
    """

    words: list[str]
    senses: list[list[int]]
    glosses: list[str]
    lexicographers: list[int]


def read_glosses(split: str) -> Glosses:
    """The embedded words of a split."""
    check_split(split)
    names = (f"{split}_{part}" for part in ("words", "counts", "senses", "glosses", "lexicographers"))
    words, counts, senses, glosses, lexicographers = embedded_arrays("wordnet.npz", *names)
    each = np.split(senses, np.cumsum(counts)[:-1])
    return Glosses(lines(words), [part.tolist() for part in each], lines(glosses), lexicographers.tolist())


def noun_rows(split: str) -> tuple[list[str], list[int]]:
    """``"word: gloss"`` of every noun sense of a split, and its class."""
    found = read_glosses(split)
    word = {sense: found.words[k] for k in range(len(found.words) - 1, -1, -1) for sense in found.senses[k]}
    rows = [k for k, file in enumerate(found.lexicographers) if FIRST_NOUN <= file < FIRST_VERB]
    texts = [f"{word[k]}: {found.glosses[k]}" for k in rows]
    return texts, [found.lexicographers[k] - FIRST_NOUN for k in rows]


def word_rows(split: str) -> tuple[list[str], list[str], Tensor]:
    """The words of a split, the glosses of all senses of each in one text, and their classes, float32 ``[N, C]``."""
    found = read_glosses(split)
    texts = ["; ".join(found.glosses[sense] for sense in senses) for senses in found.senses]
    targets = torch.zeros(len(found.words), FIRST_VERB + len(VERBS))
    for row, senses in enumerate(found.senses):
        targets[row, [found.lexicographers[sense] for sense in senses]] = 1.0
    kept = [k for k, name in _lexicographers().items() if name not in RARE]
    return found.words, texts, targets[:, kept]


def _lexicographers() -> dict[int, str]:
    nouns = {FIRST_NOUN + k: f"noun.{name}" for k, name in enumerate(NOUNS)}
    return nouns | {FIRST_VERB + k: f"verb.{name}" for k, name in enumerate(VERBS)}


class WordNetNouns(Dataset[tuple[Tensor, int]]):
    """Glosses of WordNet nouns in 25 classes (act, animal, artifact, ...): text classification.

    Every noun sense of the embedded words (:class:`WordNetWords`) is a row: ``"word: gloss"`` as ids of whole words,
    and the lexicographer file of the sense. The vocabulary is that of the training split's glosses. No sense is in both
    splits.

    Args:
        split: ``"train"`` or ``"test"``.
        vocabulary: number of ids at most: padding 0, unknown words 1, the commonest words.
        length: L, ids of a text; longer texts are cut.

    Attributes:
        ids: int64, ``[N, L]``.
        targets: int64, ``[N]``.
        texts: the texts, for other tokenizers.
        classes: the names of the 25 classes.
        num_classes: 25.
        input_shape: ``(L,)``.
        vocabulary: number of ids, for the models' option of this name.

    Raises:
        ValueError: ``split`` is another word, or a number is too small.

    Paper: Miller, WordNet: A Lexical Database for English, Communications of the ACM 38, 1995,
    https://doi.org/10.1145/219717.219748.

    Example:
        >>> from kdx.datasets import WordNetNouns
        >>> test = WordNetNouns("test")
        >>> test.texts[0], test.classes[test[0][1]], test.input_shape, test.vocabulary
        ('cakewalk: an easy accomplishment', 'act', (24,), 4000)

    """

    model_options: ClassVar[tuple[str, ...]] = ("vocabulary",)

    def __init__(self, split: Literal["train", "test"] = "train", *, vocabulary: int = 4000, length: int = 24) -> None:
        self.texts, labels = noun_rows(split)
        known = WordIds(noun_rows("train")[0], vocabulary=vocabulary, length=length)
        self.ids = known(self.texts)
        self.targets = torch.tensor(labels)
        self.classes = NOUNS
        self.num_classes = len(NOUNS)
        self.input_shape = (length,)
        self.vocabulary = known.vocabulary

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The ids ``[L]`` of row ``index`` and its class."""
        return self.ids[index], int(self.targets[index])


class WordNetWords(Dataset[tuple[Tensor, Tensor]]):
    """English words with all classes that their senses belong to, told from the glosses: multi-label classification.

    7,500 words of two to eight senses as nouns or verbs are embedded, from WordNet 3.0 (Princeton University 2006,
    WordNet licence). The input of a word is the text of all its glosses as ids of whole words, the word itself is not
    in it; the target says for each lexicographer file (``noun.act``, ``verb.motion``, ...) whether a sense of the word
    is in it. Files that fewer than a hundred of the training words have are left out, so that a few words have no
    class. No word of one split shares a sense with one of the other.

    Args:
        split: ``"train"`` (6,000 words) or ``"test"`` (1,500).
        vocabulary: number of ids at most: padding 0, unknown words 1, the commonest words.
        length: L, ids of a text; longer texts are cut.

    Attributes:
        ids: int64, ``[N, L]``.
        targets: float32, ``[N, 34]``, 1 where the word has the class, else 0.
        words: the words.
        texts: the texts, for other tokenizers.
        classes: the names of the classes.
        num_classes: 34.
        input_shape: ``(L,)``.
        vocabulary: number of ids, for the models' option of this name.

    Raises:
        ValueError: ``split`` is another word, or a number is too small.

    Paper: Miller, WordNet: A Lexical Database for English, Communications of the ACM 38, 1995,
    https://doi.org/10.1145/219717.219748.

    Example:
        >>> from kdx.datasets import WordNetWords
        >>> test = WordNetWords("test")
        >>> test.texts[1]
        'shorten; reduce in scope while retaining essential elements'
        >>> test.words[1], [test.classes[k] for k in test[1][1].nonzero().flatten()], test.ids.shape
        ('abbreviate', ['verb.change'], torch.Size([1500, 64]))

    """

    model_options: ClassVar[tuple[str, ...]] = ("vocabulary",)

    def __init__(self, split: Literal["train", "test"] = "train", *, vocabulary: int = 4000, length: int = 64) -> None:
        words, self.texts, self.targets = word_rows(split)
        known = WordIds(word_rows("train")[1], vocabulary=vocabulary, length=length)
        self.words = tuple(words)
        self.ids = known(self.texts)
        self.classes = tuple(name for name in _lexicographers().values() if name not in RARE)
        self.num_classes = len(self.classes)
        self.input_shape = (length,)
        self.vocabulary = known.vocabulary

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The ids ``[L]`` of row ``index`` and its classes ``[34]``."""
        return self.ids[index], self.targets[index]
