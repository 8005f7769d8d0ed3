"""Labelled texts in files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, Literal

from kdx_text.tokens import Tokenised

__all__ = ["TextFiles", "read_rows"]


class TextFiles(Tokenised):
    """Labelled texts from ``FOLDER/train.*`` and ``FOLDER/test.*``, tokenised.

    The files are CSV or TSV with a header, or JSON lines. Classes are the sorted labels of the training file, so that
    both splits number them alike.

    Args:
        split: ``"train"`` or ``"test"``.
        folder: where the files are.
        tokenizer: a tokenizer's folder, or a ``tokenizer.json``.
        length: tokens per text; longer ones are cut, shorter ones padded.
        text: the column (or key) of the text.
        label: the column (or key) of the label.

    Raises:
        FileNotFoundError: a file or the tokenizer is missing.
        ValueError: a row lacks a column, or the test file has a label that the training file has not; file and line
            are named.
    """

    def __init__(
        self,
        split: Literal["train", "test"] = "train",
        *,
        folder: Path,
        tokenizer: Path,
        length: int = 64,
        text: str = "text",
        label: str = "label",
    ) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        known = sorted({row[1] for row in read_rows(Path(folder), "train", text, label)})
        rows = read_rows(Path(folder), split, text, label)
        if strange := next((row[1] for row in rows if row[1] not in known), None):
            raise ValueError(f"{split}: label {strange!r} does not occur in the training file, which has {known}")
        labels = [known.index(row[1]) for row in rows]
        super().__init__([row[0] for row in rows], labels, known, tokenizer=tokenizer, length=length)


def read_rows(folder: Path, split: str, text: str, label: str) -> list[tuple[str, str]]:
    """``(text, label)`` of every row of ``folder/split.{csv,tsv,jsonl}``."""
    path = next((p for ending in ("csv", "tsv", "jsonl") if (p := folder / f"{split}.{ending}").is_file()), None)
    if path is None:
        raise FileNotFoundError(f"folder: {str(folder)!r} has no {split}.csv, {split}.tsv or {split}.jsonl")
    with path.open(newline="", encoding="utf-8") as file:
        rows: list[dict[str, Any]]
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in file if line.strip()]
        else:
            rows = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    for number, row in enumerate(rows, start=1):
        if missing := [name for name in (text, label) if row.get(name) is None]:
            raise ValueError(f"{path}, row {number}: no {missing[0]!r} among {sorted(map(str, row))}")
    return [(str(row[text]), str(row[label])) for row in rows]
