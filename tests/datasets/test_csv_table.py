"""Tables in CSV files: columns, missing cells, classes and quantities, bad input."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch

import kdx
from kdx.datasets import CsvTable, preprocessing_of
from kdx.datasets.contract import check_dataset

FLOWERS = """width,colour,kind
1.0,red,rose
2.0,white,daisy
3.0,red,rose
6.0,white,daisy
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "flowers.csv").write_text(FLOWERS)
    return tmp_path / "flowers.csv"


def changed(file: Path, old: str, new: str) -> Path:
    file.write_text(file.read_text().replace(old, new))
    return file


def test_numbers_are_standardised_and_words_become_numbers(file, tmp_path) -> None:
    other = tmp_path / "test.csv"
    other.write_text("kind,colour,width\nrose,white,3.0\n")  # columns in another order
    train, test = (kdx.make("dataset", "csv", split=s, file=file, test=other, target="kind") for s in ("train", "test"))
    spread = statistics.pstdev([1.0, 2.0, 3.0, 6.0])
    expected = [[-2 / spread, 1, 0], [-1 / spread, 0, 1], [0, 1, 0], [3 / spread, 0, 1]]
    torch.testing.assert_close(train.inputs, torch.tensor(expected))
    assert (train.classes, train.num_classes, train.targets.tolist()) == (("daisy", "rose"), 2, [1, 0, 1, 0])
    torch.testing.assert_close(test[0][0], torch.tensor([0.0, 0.0, 1.0]))
    assert test[0][1] == 1
    for each in (train, test):
        check_dataset(each)


def test_quantities_may_be_several(file) -> None:
    both = changed(file, "colour", "height")
    for old, new in (("red", "4"), ("white", "5")):
        changed(file, old, new)
    train = CsvTable("train", file=both, test=0.25, target=["width", "height"])
    assert (train.targets.shape, train.num_classes, train.classes) == ((3, 2), 2, None)
    one = CsvTable("train", file=both, test=0.25, target="width", kind="quantity")
    assert one.targets.shape == (3, 1)
    check_dataset(train)


def test_numbers_as_target_are_asked_about(file) -> None:
    with pytest.raises(
        ValueError, match=r"kind: the target 'width' has numbers, .* give kind: class or kind: quantity"
    ):
        CsvTable("train", file=file, test=0.5, target="width")
    assert CsvTable("train", file=changed(file, "6.0", "1.0"), test=0.25, target="width", kind="class").num_classes >= 2


@pytest.mark.parametrize("empty", ["", "NA", "?", " nan "])
def test_missing_cells_are_refused_dropped_or_filled(file, empty) -> None:
    changed(file, "2.0,white", f"{empty},white")
    options = {"split": "train", "file": file, "test": file, "target": "kind"}
    with pytest.raises(ValueError, match=r"flowers\.csv, line 3, column 'width': the cell is empty \(.*'width' 1\)"):
        CsvTable(**options)
    with pytest.warns(UserWarning, match="1 of 4 rows have empty cells and are left out"):
        assert len(CsvTable(**options, missing="drop")) == 3
    filled = CsvTable(**options, missing="fill")
    assert filled.inputs[1].tolist() == [0.0, 0.0, 1.0]  # the mean of the others, standardised
    changed(file, "3.0,red,rose", "3.0,red,")
    with pytest.raises(ValueError, match="line 4, column 'kind': the cell is empty"):
        CsvTable(**options, missing="fill")


def test_unknown_words_and_classes_of_the_test_rows_are_named(file, tmp_path) -> None:
    other = tmp_path / "test.csv"
    other.write_text("width,colour,kind\n1,green,rose\n")
    options = {"split": "test", "file": file, "test": other, "target": "kind"}
    with pytest.raises(ValueError, match=r"test\.csv, line 2, column 'colour': 'green' is not among"):
        CsvTable(**options)
    assert CsvTable(**options, unknown_words=True).inputs[0, 1:].tolist() == [0.0, 0.0]
    other.write_text("width,colour,kind\n1,red,roses\n")
    with pytest.raises(ValueError, match=r"the class 'roses' is none of the training rows'; did you mean 'rose'"):
        CsvTable(**options)


def test_a_stray_word_in_a_column_of_numbers_is_no_category(file) -> None:
    changed(file, "2.0,white", "2;0,white")
    options = {"split": "train", "file": file, "test": file, "target": "kind"}
    with pytest.raises(ValueError, match=r"line 3, column 'width': '2;0' is no number, as 3 of its 4 cells are"):
        CsvTable(**options)
    assert CsvTable(**options, words=["width"]).input_shape == (6,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the first line must name every column"),
        ("width,width,kind\n1,2,a\n", "each differently"),
        ("width,kind\n", "there is no row below the header width, kind"),
        ("width,colour,kind\n1,red,rose,4\n", "line 2: 4 cells, and the header names 3 columns"),
        ('width,colour,kind\n1,"red,rose\n', "cannot be read as a table"),
        (
            "width,colour,kind\ninf,red,rose\n2,red,daisy\n",
            "line 2, column 'width': expected a finite number, got 'inf'",
        ),
        ("width,colour,kind\n1,red,rose\n2,red,rose\n", "all training rows are of one class, 'rose'"),
        ("width,colour,kind\n,red,rose\n,red,daisy\n", "the cell is empty"),
    ],
)
def test_files_that_are_no_tables_are_named(tmp_path, text, message) -> None:
    file = tmp_path / "bad.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        CsvTable("train", file=file, test=file, target="kind")


def test_other_encodings_and_marks(tmp_path) -> None:
    file = tmp_path / "bad.csv"
    file.write_bytes("width,kind\n1,caf\u00e9\n2,tea\n".encode("latin-1"))
    with pytest.raises(ValueError, match="in UTF-8"):
        CsvTable("train", file=file, test=file, target="kind")
    file.write_bytes("\ufeffwidth;kind\n1;caf\u00e9\n2;tea\n".encode())
    assert CsvTable("train", file=file, test=file, target="kind", delimiter=";").classes == ("caf\u00e9", "tea")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "kin"}, "target: .*no column 'kin'; did you mean 'kind'"),
        ({"columns": ["width", "kind"]}, "columns: 'kind' is the target, and would tell the answer"),
        ({"columns": []}, "columns: expected columns of"),
        ({"words": ["kind"]}, "words: 'kind' is no column of the input"),
        ({"kind": "number"}, "kind must be one of None, 'class', 'quantity'"),
        ({"missing": "mean"}, "missing must be one of"),
        ({"test": 1.5}, "between 0 and 1, got 1.5"),
        ({"test": 0.01}, "leaves a split without a row"),
    ],
)
def test_bad_options_are_named(file, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        CsvTable(**({"split": "train", "file": file, "test": 0.5, "target": "kind"} | options))


def test_a_column_of_names_is_no_category(tmp_path) -> None:
    file = tmp_path / "names.csv"
    file.write_text("name,kind\n" + "".join(f"n{number},{'ab'[number % 2]}\n" for number in range(200)))
    with pytest.raises(ValueError, match="'name' has 200 different words, more than 100"):
        CsvTable("train", file=file, test=file, target="kind")


def test_the_preprocessing_reads_new_rows(file, tmp_path) -> None:
    train = CsvTable("train", file=file, test=file, target="kind")
    again = preprocessing_of(train.preprocessing.as_dict())
    new = tmp_path / "new.csv"
    new.write_text("colour,width\nred,1.0\nwhite,6.0\n")  # without the target
    names, inputs = zip(*again.read(new), strict=True)
    assert names == (f"{new}:2", f"{new}:3")
    torch.testing.assert_close(torch.stack(inputs), train.inputs[[0, 3]])
    new.write_text("width\n1.0\n")
    with pytest.raises(ValueError, match=r"new\.csv: there is no column 'colour'; the header has width"):
        list(again.read(new))
