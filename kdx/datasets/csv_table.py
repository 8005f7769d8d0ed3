"""Rows of a table in a CSV file."""

from __future__ import annotations

import statistics
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from kdx.datasets.embedded import check_split
from kdx.datasets.held_out import rows_of_split
from kdx.datasets.table_preprocessing import Column, TablePreprocessing
from kdx.datasets.tables import is_missing, number_of, read_table
from kdx.errors import nearest

__all__ = ["CsvTable"]

MOST_WORDS = 100
Row = tuple[str, Mapping[str, str]]


class CsvTable(Dataset[tuple[Tensor, Any]]):
    r"""Rows of a CSV file with a header: numbers are standardised, words become one number for each word there is.

    A column is one of numbers if every cell is a number, and one of words if none is; one that has both is refused,
    unless ``words`` names it. Mean, standard deviation, words and classes are those of the training rows.

    Args:
        split: ``"train"`` or ``"test"``.
        file: the CSV file of the training rows, in UTF-8.
        test: that of the test rows, or the share of the rows of ``file`` held out for the test, between 0 and 1; the
            same rows in every run.
        target: the column that is to be predicted; of quantities several, in a list.
        kind: what the target is: ``"class"`` or ``"quantity"``. None: classes if they are words; numbers may be either,
            so it is asked for.
        columns: those of the input; None takes all but the target.
        words: columns of words whose cells look like numbers, as codes do.
        delimiter: between cells.
        missing: cells that are empty, ``?``, ``NA``, ``NaN``, ``null`` or ``none``. ``"refuse"`` names them; ``"drop"``
            leaves their rows out, with a warning that counts them; ``"fill"`` takes the mean of a number and no word. A
            missing target is refused, or dropped.
        unknown_words: words in the test rows that no training row has count as none of the known ones, instead of being
            refused.
        preprocessing: that of a trained model, in the place of what the training rows give.
        classes: names of the classes of a trained model, in their order; None: those of the training rows.

    Attributes:
        targets: int64 ``[N]`` of classes, float32 ``[N, quantities]`` of quantities.
        classes: the sorted names of the classes; None of quantities.
        num_classes: classes or quantities.
        input_shape: ``(numbers,)``.
        preprocessing: a :class:`kdx.datasets.TablePreprocessing`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a cell, a row or a column is not what it should be; it is named.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> file = Path(mkdtemp(), "table.csv")
        >>> _ = file.write_text("width,colour,kind\n1,red,a\n2,blue,b\n3,red,a\n4,blue,b\n")
        >>> table = CsvTable("train", file=file, test=0.5, target="kind")
        >>> table.classes, table.input_shape, [column.name for column in table.preprocessing.columns]
        (('a', 'b'), (3,), ['width', 'colour'])
    """

    def __init__(
        self,
        split: Literal["train", "test"] = "train",
        *,
        file: str | Path,
        test: str | Path | float,
        target: str | Sequence[str],
        kind: Literal["class", "quantity"] | None = None,
        columns: Sequence[str] | None = None,
        words: Sequence[str] = (),
        delimiter: str = ",",
        missing: Literal["refuse", "drop", "fill"] = "refuse",
        unknown_words: bool = False,
        preprocessing: TablePreprocessing | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        check_split(split)
        for option, value, known in (("kind", kind, (None, "class", "quantity")), ("missing", missing, _MISSING)):
            if value not in known:
                raise ValueError(f"{option} must be one of {', '.join(map(repr, known))}; got {value!r}")
        wanted = [target] if isinstance(target, str) else list(target)
        header, rows = _rows(Path(file), delimiter)
        names = [name for name in header if name not in wanted] if columns is None else list(columns)
        _check_names(file, header, wanted, names)
        if strange := [name for name in words if name not in names]:
            raise ValueError(f"words: {strange[0]!r} is no column of the input; {nearest(strange[0], names)}")
        rows = _complete(rows, wanted, names, missing)
        kind = kind or _kind(wanted, rows)
        if isinstance(test, str | Path):
            test_header, test_rows = _rows(Path(test), delimiter)
            _check_names(test, test_header, wanted, names)
            parts = {"train": rows, "test": _complete(test_rows, wanted, names, missing)}
        else:
            labels = sorted({row[wanted[0]] for _, row in rows})
            strata = torch.tensor([labels.index(row[wanted[0]]) if kind == "class" else 0 for _, row in rows])
            parts = {part: [rows[k] for k in rows_of_split(strata, test, part).tolist()] for part in ("train", "test")}
        train = parts["train"]
        self.preprocessing = preprocessing or TablePreprocessing(
            columns=tuple(_column(name, train, words=name in words) for name in names),
            delimiter=delimiter,
            fill_missing=missing == "fill",
            unknown_words=unknown_words,
        )
        self.inputs = torch.stack([self.preprocessing(row, where) for where, row in parts[split]])
        self.classes: tuple[str, ...] | None = None
        if kind == "class":
            self.classes = tuple(classes or sorted({row[wanted[0]] for _, row in train}))
            if len(self.classes) < 2:
                raise ValueError(f"target: all training rows are of one class, {self.classes[0]!r}")
            self.targets = torch.tensor([_class(row[wanted[0]], self.classes, where) for where, row in parts[split]])
        else:
            numbers = [
                [number_of(row[name], f"{where}, column {name!r}") for name in wanted] for where, row in parts[split]
            ]
            self.targets = torch.tensor(numbers, dtype=torch.float32)
        self.num_classes = len(wanted) if self.classes is None else len(self.classes)
        self.input_shape = (self.preprocessing.width,)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        """The input ``[numbers]`` and the class, or the quantities ``[quantities]``, of row ``index``."""
        target = self.targets[index]
        return self.inputs[index], int(target) if target.dim() == 0 else target


_MISSING = ("refuse", "drop", "fill")


def _rows(file: Path, delimiter: str) -> tuple[list[str], list[Row]]:
    header, rows = read_table(file, delimiter)
    return header, [(f"{file}, line {line}", row) for line, row in rows]


def _check_names(file: Any, header: list[str], wanted: list[str], names: list[str]) -> None:
    for option, given in (("target", wanted), ("columns", names)):
        for name in given:
            if name not in header:
                raise ValueError(f"{option}: {file} has no column {name!r}; {nearest(name, header)}")
        if not given or len(set(given)) < len(given):
            raise ValueError(f"{option}: expected columns of {file}, each once, got {given}")
    if both := set(wanted) & set(names):
        raise ValueError(f"columns: {sorted(both)[0]!r} is the target, and would tell the answer; leave it out")


def _complete(rows: list[Row], wanted: list[str], names: list[str], missing: str) -> list[Row]:
    """The rows without missing cells, or all if those are to be filled."""
    needed = wanted if missing == "fill" else [*wanted, *names]
    lost = [(where, name) for where, row in rows for name in needed if is_missing(row[name])]
    if not lost:
        return rows
    counts = ", ".join(f"{name!r} {count}" for name, count in Counter(name for _, name in lost).most_common(5))
    if missing != "drop":
        way = "give missing='drop' to leave such rows out" + (" or missing='fill'" if missing == "refuse" else "")
        raise ValueError(f"{lost[0][0]}, column {lost[0][1]!r}: the cell is empty (empty cells: {counts}); {way}")
    gone = {where for where, _ in lost}
    warnings.warn(f"{len(gone)} of {len(rows)} rows have empty cells and are left out ({counts})", stacklevel=3)
    if len(gone) == len(rows):
        raise ValueError(f"missing='drop' leaves no row: all have empty cells ({counts})")
    return [each for each in rows if each[0] not in gone]


def _kind(wanted: list[str], rows: list[Row]) -> Literal["class", "quantity"]:
    if len(wanted) > 1:
        return "quantity"
    if any(_is_number(row[wanted[0]]) for _, row in rows):
        raise ValueError(
            f"kind: the target {wanted[0]!r} has numbers, which may number classes or be quantities; give "
            "kind: class or kind: quantity"
        )
    return "class"


def _column(name: str, rows: list[Row], *, words: bool) -> Column:
    cells = [(where, row[name]) for where, row in rows if not is_missing(row[name])]
    if not cells:
        raise ValueError(f"columns: all training rows have an empty cell in {name!r}; leave it out of columns")
    strange = [(where, cell) for where, cell in cells if not _is_number(cell)]
    if not words and not strange:
        numbers = [number_of(cell, f"{where}, column {name!r}") for where, cell in cells]
        return Column(name=name, mean=statistics.fmean(numbers), std=statistics.pstdev(numbers) or 1.0)
    if not words and len(strange) < len(cells):
        where, cell = strange[0]
        raise ValueError(
            f"{where}, column {name!r}: {cell!r} is no number, as {len(cells) - len(strange)} of its {len(cells)} "
            f"cells are; correct it, or give words: [{name}] if they are words that look like numbers"
        )
    known = tuple(sorted({cell for _, cell in cells}))
    if len(known) > MOST_WORDS:
        raise ValueError(
            f"columns: {name!r} has {len(known)} different words, more than {MOST_WORDS}; a name or a text is no "
            "category: list the columns without it"
        )
    return Column(name=name, words=known)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _class(cell: str, classes: tuple[str, ...], where: str) -> int:
    if cell not in classes:
        raise ValueError(f"{where}: the class {cell!r} is none of the training rows'; {nearest(cell, classes)}")
    return classes.index(cell)
