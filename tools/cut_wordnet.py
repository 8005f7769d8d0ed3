"""Cut the words and glosses that kdx ships out of WordNet 3.0.

Reads ``data.noun`` and ``data.verb`` of Debian's package ``wordnet-base`` and writes ``wordnet.npz``: 6,000 training
and 1,500 test words with every noun and verb sense of theirs. On Debian, without root::

    apt-get download wordnet-base
    dpkg -x wordnet-base_*.deb unpacked
    python tools/cut_wordnet.py unpacked/usr/share/wordnet

A word is one of the letters a to z alone that has two to eight senses as a noun or a verb. Words are taken by the
smallest SHA-256 of ``"{SEED}:{word}"``, those for the test first; no training word shares a sense (and with it a gloss)
with a test word. A gloss loses its examples.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from packing import DATA, Arrays, checked, command, text

SEED = 2006
WORDS = {"test": 1500, "train": 6000}
SENSES = range(2, 9)
SHA256 = {
    "data.noun": "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2",
    "data.verb": "adcf43e35b581e8036d8b5a52d63d9cd3d3b4870b2720d3c03c799df44777bc2",
}
OUTPUT = DATA / "wordnet.npz"


class Synset(NamedTuple):
    """A sense: the number of its lexicographer file, its words and its gloss."""

    lexicographer: int
    words: tuple[str, ...]
    gloss: str


def read_synsets(source: Path) -> list[Synset]:
    """The noun synsets in the order of their file, then the verb synsets, after checking the SHA-256 of both files."""
    synsets = []
    for name, expected in SHA256.items():
        raw = checked(source / name, expected)
        for line in raw.decode("ascii").splitlines():
            if line.startswith(" "):
                continue  # the licence
            fields, _, gloss = line.partition(" | ")
            _, lexicographer, _, count, *rest = fields.split(" ")
            words = tuple(rest[2 * k] for k in range(int(count, 16)))
            synsets.append(Synset(int(lexicographer), words, definition(gloss)))
    return synsets


def definition(gloss: str) -> str:
    """A gloss without its examples: ``'not easily borne; "the burden"'`` becomes ``'not easily borne'``."""
    return gloss.split('; "', maxsplit=1)[0].strip().rstrip(";:").rstrip()


def choose(senses: dict[str, set[int]]) -> dict[str, list[str]]:
    """The words of both splits, sorted; ``senses`` gives the synsets of every word of WordNet."""

    def rank(word: str) -> bytes:
        return hashlib.sha256(f"{SEED}:{word}".encode()).digest()

    fit = [word for word, found in senses.items() if re.fullmatch("[a-z]{2,}", word) and len(found) in SENSES]
    fit.sort(key=rank)
    test = fit[: WORDS["test"]]
    taken = set().union(*(senses[word] for word in test))
    train = [word for word in fit[len(test) :] if not senses[word] & taken][: WORDS["train"]]
    return {"train": sorted(train), "test": sorted(test)}


def cut(source: Path) -> Arrays:
    """The arrays of the file, as ``kdx/data/README.md`` lists them."""
    synsets = read_synsets(source)
    senses: dict[str, set[int]] = defaultdict(set)
    for number, synset in enumerate(synsets):
        for word in synset.words:
            senses[word].add(number)
    arrays: Arrays = {}
    for split, words in choose(senses).items():
        used = sorted(set().union(*(senses[word] for word in words)))
        place = {number: k for k, number in enumerate(used)}
        arrays[f"{split}_words"] = text(words)
        arrays[f"{split}_counts"] = np.array([len(senses[word]) for word in words], np.uint8)
        arrays[f"{split}_senses"] = np.array([place[k] for word in words for k in sorted(senses[word])], np.uint16)
        arrays[f"{split}_glosses"] = text([synsets[number].gloss for number in used])
        arrays[f"{split}_lexicographers"] = np.array([synsets[number].lexicographer for number in used], np.uint8)
    return arrays


if __name__ == "__main__":
    sys.exit(command(cut, OUTPUT, __doc__, "folder with data.noun and data.verb"))
