"""The nouns of WordNet, each with its gloss and the class of its lexicographer file."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Literal

from kdx_text.tokens import Tokenised

__all__ = ["WordNetGlosses", "read_nouns"]

# the lexicographer files 4 .. 28 of nouns, in the order of WordNet's manual (lexnames, section 5WN); 3 holds the tops
CLASSES = (
    *("act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event", "feeling", "food"),
    *("group", "location", "motive", "object", "person", "phenomenon", "plant", "possession", "process", "quantity"),
    *("relation", "shape", "state", "substance", "time"),
)
FIRST = 4
TEST_SHARE = 10
"""One synset in this many is for testing."""


class WordNetGlosses(Tokenised):
    """``"word: gloss"`` of WordNet nouns in 25 classes (act, animal, artifact, ...), tokenised.

    Which synsets are for testing depends on their offset alone: a tenth of them, always the same.

    Args:
        split: ``"train"`` or ``"test"``.
        folder: a folder with WordNet's ``data.noun``; Debian's package ``wordnet-base`` puts it in the default.
        tokenizer: a tokenizer's folder, or a ``tokenizer.json``.
        length: tokens per text.
        limit: takes the first so many of the split, spread over the file; None takes all (about 74,000 and 8,000).

    Raises:
        FileNotFoundError: ``data.noun`` or the tokenizer is missing.

    Paper: Miller, WordNet: A Lexical Database for English, Communications of the ACM 38, 1995.
    """

    def __init__(
        self,
        split: Literal["train", "test"] = "train",
        *,
        tokenizer: Path,
        folder: Path = Path("/usr/share/wordnet"),
        length: int = 48,
        limit: int | None = None,
    ) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        rows = [row for row in read_nouns(Path(folder)) if _is_test(row[0]) == (split == "test")]
        step = max(len(rows) // limit, 1) if limit else 1
        rows = rows[::step][:limit]
        _, texts, labels = zip(*rows, strict=True)
        super().__init__(texts, labels, CLASSES, tokenizer=tokenizer, length=length)


def read_nouns(folder: Path) -> list[tuple[int, str, int]]:
    """``(offset, "word: gloss", class)`` of every noun synset of ``folder/data.noun`` that has a class."""
    path = folder / "data.noun"
    if not path.is_file():
        raise FileNotFoundError(
            f"folder: {str(folder)!r} has no data.noun; install WordNet (Debian: wordnet-base) or give its dict folder"
        )
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):
            continue  # the licence
        fields, _, gloss = line.partition(" | ")
        offset, file, _, _, word = fields.split(" ", 5)[:5]
        if int(file) >= FIRST:
            rows.append((int(offset), f"{word.replace('_', ' ')}: {gloss.strip()}", int(file) - FIRST))
    return rows


def _is_test(offset: int) -> bool:
    return zlib.crc32(str(offset).encode()) % TEST_SHARE == 0
