"""Columns of a table as the numbers of an input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from kdx.datasets.preprocessing import Preprocessing
from kdx.datasets.tables import is_missing, number_of, read_table

__all__ = ["Column", "TablePreprocessing"]


class Column(BaseModel):
    """One column of a table: a number that is standardised, or a word of a known list, one number for each.

    Args:
        name: in the header.
        mean, std: of a number.
        words: those there are; None for a number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    mean: float = 0.0
    std: Annotated[float, Field(gt=0)] = 1.0
    words: tuple[str, ...] | None = None


class TablePreprocessing(Preprocessing):
    """Rows of a table: columns as numbers, side by side.

    Args:
        columns: in the order of the input.
        delimiter: between cells.
        fill_missing: a missing number becomes the mean, a missing word none of the known ones; else it is refused.
        unknown_words: a word that is not known becomes none of those that are; else it is refused.
    """

    kind: Literal["table"] = "table"
    columns: tuple[Column, ...]
    delimiter: str = ","
    fill_missing: bool = False
    unknown_words: bool = False

    @property
    def width(self) -> int:
        """Numbers in one input."""
        return sum(1 if column.words is None else len(column.words) for column in self.columns)

    def __call__(self, row: Mapping[str, str], where: str) -> Tensor:
        """The input ``[width]``, float32, of one row: column name -> cell; ``where`` names it in messages.

        Raises:
            ValueError: a cell is missing, no number or an unknown word.
        """
        numbers: list[float] = []
        for column in self.columns:
            cell = row[column.name]
            if is_missing(cell):
                if not self.fill_missing:
                    raise ValueError(
                        f"{where}, column {column.name!r}: the cell is empty; fill it, or leave the row out"
                    )
                numbers += [0.0] if column.words is None else [0.0] * len(column.words)
            elif column.words is None:
                numbers.append((number_of(cell, f"{where}, column {column.name!r}") - column.mean) / column.std)
            else:
                if cell not in column.words and not self.unknown_words:
                    raise ValueError(
                        f"{where}, column {column.name!r}: {cell!r} is not among the training rows' "
                        f"{len(column.words)} words ({', '.join(column.words[:5])} ...); unknown_words=True takes it "
                        "as none of them"
                    )
                numbers += [float(cell == word) for word in column.words]
        return torch.tensor(numbers, dtype=torch.float32)

    def read(self, file: Path) -> Iterator[tuple[str, Tensor]]:
        """The inputs of the rows of a file, with the file and the line of each; other columns are not looked at.

        Raises:
            ValueError: a column is missing, or a cell as :meth:`__call__` says.
        """
        header, rows = read_table(file, self.delimiter)
        if lost := [column.name for column in self.columns if column.name not in header]:
            raise ValueError(f"{file}: there is no column {lost[0]!r}; the header has {', '.join(header)}")
        for line, row in rows:
            yield f"{file}:{line}", self(row, f"{file}, line {line}")
