"""The glosses that kdx carries, in the tokens of a pretrained teacher and in whole words."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor

from kdx.datasets import WordNetNouns
from kdx_text.tokens import load_tokenizer

__all__ = ["WordNetPieces"]


class WordNetPieces(WordNetNouns):
    """Glosses of WordNet nouns in 25 classes, tokenised twice: word pieces for a teacher, whole words for a student.

    The texts, splits and classes are those of :class:`kdx.datasets.WordNetNouns`. Rows are one of the two; row ``i`` of
    ``pieces`` and row ``i`` of ``words`` are the same text, so that a map from a batch's ``index`` gives a model the
    other one.

    Args:
        split: ``"train"`` or ``"test"``.
        rows: which ids the rows are, ``"pieces"`` or ``"words"``.
        tokenizer: ``"minilm"``, that of all-MiniLM-L6-v2, or the folder or file of another one.
        length: L, tokens per text, of both kinds.
        vocabulary: number of whole words at most.
        limit: takes so many rows, spread over the split; None takes all.

    Attributes:
        pieces: int64, ``[N, L]``, ids of the tokenizer, filled with its padding.
        words: int64, ``[N, L]``, ids of whole words, filled with 0.
        ids: one of the two, as ``rows`` says.
        vocabulary: number of ids of the rows, for the models' option of this name.
        padding: the padding's id of the rows.

    Raises:
        ModuleNotFoundError: the package of all-MiniLM-L6-v2 is not installed; the message says how to.
        FileNotFoundError: there is no such tokenizer.
        ValueError: ``split`` or ``rows`` is another word, or a number is too small.
    """

    def __init__(
        self,
        split: Literal["train", "test"] = "train",
        *,
        rows: Literal["pieces", "words"] = "pieces",
        tokenizer: Path | Literal["minilm"] = "minilm",
        length: int = 32,
        vocabulary: int = 4000,
        limit: int | None = None,
    ) -> None:
        if rows not in ("pieces", "words"):
            raise ValueError(f"rows must be 'pieces' or 'words', got {rows!r}")
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be 1 or more, or None for all rows; got {limit}")
        super().__init__(split, vocabulary=vocabulary, length=length)
        step = max(len(self.texts) // limit, 1) if limit else 1
        self.texts = self.texts[::step][:limit]
        self.targets = self.targets[::step][:limit]
        self.words: Tensor = self.ids[::step][:limit]
        loaded = load_tokenizer(tokenizer)
        encoded = loaded(self.texts, truncation=True, max_length=length, padding="max_length", return_tensors="pt")
        self.pieces: Tensor = encoded["input_ids"]
        self.padding = 0
        self.ids = self.words
        if rows == "pieces":
            self.ids, self.vocabulary, self.padding = self.pieces, len(loaded), int(loaded.pad_token_id)
