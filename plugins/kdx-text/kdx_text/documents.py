"""Documents: texts in files, and which of them are for testing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

__all__ = ["read_documents", "split_documents"]


def read_documents(source: Path | Sequence[str], *, separator: str | None = None, text: str = "text") -> list[str]:
    """Texts, one for each document, in the order of their names and lines; empty ones are left out.

    Args:
        source: a folder of ``.txt`` files (or ``.jsonl`` ones), one such file, or the texts themselves. A ``.txt`` file
            is one document, a ``.jsonl`` file has one in every line.
        separator: cuts every text into documents, as a line that stands between them.
        text: the key of the text in ``.jsonl`` lines.

    Raises:
        FileNotFoundError: there is no such file, or a folder without texts.
        ValueError: a file is not UTF-8, a line has no text, or no document is left.
    """
    if isinstance(source, Path | str):
        texts = [found for path in _files(Path(source)) for found in _texts(path, text)]
    else:
        texts = list(source)
        if strange := next((each for each in texts if not isinstance(each, str)), None):
            raise ValueError(f"documents: expected texts, got a {type(strange).__name__}")
    if separator:
        texts = [part for each in texts for part in each.split(separator)]
    if not (found := [each for each in texts if each.strip()]):
        raise ValueError("documents: expected a text at least, got none that is not empty")
    return found


def split_documents(documents: Sequence[str], share: float) -> tuple[list[str], list[str]]:
    """Training and test documents: a share of them by the hash of their text, so that neither order nor name matters.

    A text that is there twice is on one side.

    Raises:
        ValueError: the share is out of range, or leaves one side without a document.
    """
    if isinstance(share, bool) or not 0 < share < 1:
        raise ValueError(f"test: expected the share of documents held out for the test, between 0 and 1, got {share!r}")
    ordered = sorted({hashlib.sha256(each.encode()).hexdigest() for each in documents})
    count = max(1, round(len(ordered) * share))
    if count >= len(ordered):
        raise ValueError(
            f"test: of {len(ordered)} different documents a share of {share} leaves none for training; give more "
            "documents, a separator that cuts a file into documents, or other documents as test="
        )
    held_out = set(ordered[:count])
    sides: tuple[list[str], list[str]] = ([], [])
    for each in documents:
        sides[hashlib.sha256(each.encode()).hexdigest() in held_out].append(each)
    return sides


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise FileNotFoundError(f"documents: there is no file or folder {str(source)!r}")
    for ending in (".txt", ".jsonl"):
        if found := sorted(source.glob(f"*{ending}")):
            return found
    raise FileNotFoundError(f"documents: {str(source)!r} has no .txt and no .jsonl files")


def _texts(path: Path, key: str) -> list[str]:
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"documents: {path} is not UTF-8: {error}") from error
    if path.suffix != ".jsonl":
        return [content]
    found = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: no JSON: {error}") from error
        if not isinstance(row, dict) or not isinstance(row.get(key), str):
            keys = sorted(row) if isinstance(row, dict) else type(row).__name__
            raise ValueError(f"{path}, line {number}: no text {key!r} among {keys}; name its key as text=")
        found.append(row[key])
    return found
