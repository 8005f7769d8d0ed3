"""Tables in CSV files, read with a name for every place."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from pathlib import Path

__all__ = ["is_missing", "number_of", "read_table"]

MISSING = frozenset({"", "?", "na", "n/a", "nan", "none", "null"})
"""Cells that count as empty, whatever the case of their letters."""


def is_missing(cell: str) -> bool:
    """Whether a cell is empty, or says so."""
    return cell.strip().lower() in MISSING


def number_of(cell: str, where: str) -> float:
    """The number in a cell.

    Raises:
        ValueError: it is none, or not finite.
    """
    try:
        number = float(cell)
    except ValueError:
        raise ValueError(f"{where}: expected a number, got {cell!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{where}: expected a finite number, got {cell!r}")
    return number


def read_table(file: Path, delimiter: str = ",") -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The header of a CSV file, and its rows: the line each begins in, and column name -> cell.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no table of text in UTF-8 with a header of different names, or a row has another length.
    """
    try:
        with Path(file).open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.reader(opened, delimiter=delimiter, strict=True)
            header = [name.strip() for name in next(reader, [])]
            rows: list[tuple[int, list[str]]] = []
            begins = reader.line_num + 1
            for cells in reader:
                if cells:
                    rows.append((begins, cells))
                begins = reader.line_num + 1
    except (UnicodeDecodeError, csv.Error, TypeError) as error:
        raise ValueError(
            f"{file} cannot be read as a table of cells between {delimiter!r} in UTF-8: {error}"
        ) from error
    if not header or len(set(header)) < len(header) or not all(header):
        raise ValueError(f"{file}: the first line must name every column, each differently; got {_shown(header)}")
    if not rows:
        raise ValueError(f"{file}: there is no row below the header {_shown(header)}")
    for line, cells in rows:
        if len(cells) != len(header):
            raise ValueError(f"{file}, line {line}: {len(cells)} cells, and the header names {len(header)} columns")
    return header, [(line, dict(zip(header, cells, strict=True))) for line, cells in rows]


def _shown(names: Iterable[str]) -> str:
    return ", ".join(names)[:200] or "nothing"
