"""The contract of a data set is checked when an experiment is built, with messages in full."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdx.datasets import check_dataset
from kdx.errors import RecipeError
from kdx.experiment.experiment import Experiment
from kdx.hookspecs import hookimpl
from kdx.spec import Spec
from tests.experiment.tiny import recipe


class Rows:
    """Eight-pixel images of two classes, with one thing changed.

    Args:
        change: which.
        split: ``"train"`` or ``"test"``.
    """

    num_classes = 2
    input_shape = (1, 2, 4)

    def __init__(self, change: str, split: str = "train") -> None:
        self.change = change
        self.targets = torch.arange(200) % 2
        if change == "refused":
            raise ValueError("folder: expected pictures, found none in 'x'")
        if change in ("num_classes", "input_shape", "targets"):
            setattr(self, change, None)
        if change == "a list":
            self.targets = self.targets.tolist()
        if change == "floats":
            self.targets = self.targets.float()
        if change == "too few":
            self.targets = self.targets[:7]
        if change == "too high":
            self.targets = self.targets + 1
        if change == "a shape":
            self.input_shape = (3, 2, 4)

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int):
        image = torch.full((1, 2, 4), float(index % 2))
        label = int(index % 2)
        return {
            "one thing": image,
            "an array": (image.numpy(), label),
            "bytes": (image.byte(), label),
            "another label": (image, 1 - label),
        }.get(self.change, (image, label))


@pytest.fixture
def rows(plugged):
    """Registers the data set of this file."""

    class Plugin:
        @hookimpl
        def kdx_datasets(self):
            return [Spec("rows", f"{__name__}:Rows", "for a test")]

    plugged(Plugin(), "rows-of-a-test")


def experiment(change: str, tmp_path: Path) -> Experiment:
    data = {"dataset": {"name": "rows", "change": change}, "validation": 50}
    return Experiment(recipe(data=data), tmp_path / "run")


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("refused", "folder: expected pictures, found none in 'x'"),
        ("num_classes", "num_classes: expected the number of classes, labels or quantities, an int, got None"),
        ("input_shape", "input_shape: expected the shape of one input, a tuple of ints, got None"),
        ("targets", r"targets: expected those of all rows, an int64 tensor .*, got NoneType None"),
        ("a list", r"targets: expected those of all rows, an int64 tensor .*, got list \[0, 1, "),
        ("floats", r"targets: Classification: targets of floating point are soft labels \[N, C\], got shape \[200\]"),
        ("too few", r"targets: expected one for each of its 200 rows, got 7"),
        ("too high", r"targets: expected classes 0 \.\. 1 \(or -100, no label\), got 1 \.\. 2"),
        ("a shape", r"row 0: expected an input of input_shape \[3, 2, 4\], got \[1, 2, 4\]"),
        (
            "one thing",
            r"row 0: expected a pair \(input, target\), got a tensor of torch.float32 with shape \[1, ",
        ),
        ("an array", r"row 0: expected a tensor as input, got ndarray;"),
        ("another label", r"row 0: its target is 1, in targets it is 0"),
    ],
)
def test_a_data_set_that_breaks_the_contract_is_named(change: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data.dataset \(rows\): " + message):
        experiment(change, tmp_path).run()
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("rows")
def test_a_data_set_that_keeps_it_is_taken(tmp_path: Path) -> None:
    assert len(experiment("nothing", tmp_path).data.validation) == 50


class Stream(torch.utils.data.IterableDataset):
    """Rows without a number."""

    def __iter__(self):
        yield torch.zeros(3), 0


class Columns(torch.utils.data.Dataset):
    """Rows as mappings, which those of Hugging Face are."""

    num_classes, input_shape, targets = 2, (3,), torch.zeros(4, dtype=torch.int64)

    def __len__(self):
        return 4

    def __getitem__(self, row):
        return {"values": torch.zeros(3), "label": 0}


def test_a_stream_and_rows_with_columns_say_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"of a stream no rows can be held out, .* kdx\.fit\(\.\.\., steps=\)"):
        check_dataset(Stream())
    with pytest.raises(TypeError, match=r"row\[\.\.\.\] of its columns values, label, .* the data set hf of kdx-text"):
        check_dataset(Columns())


class Named(Columns):
    """Rows whose inputs are a mapping."""

    def __init__(self, **inputs):
        self.inputs = inputs

    def __getitem__(self, row):
        return self.inputs, 0


def test_inputs_by_name_are_tensors_of_which_the_first_has_the_shape() -> None:
    check_dataset(Named(values=torch.zeros(3), mask=torch.zeros(2)))
    with pytest.raises(ValueError, match=r"expected an input of input_shape \[3\], got \[2\]"):
        check_dataset(Named(mask=torch.zeros(2), values=torch.zeros(3)))
    with pytest.raises(ValueError, match=r"expected an input of input_shape \[3\], got an empty mapping"):
        check_dataset(Named())
    with pytest.raises(TypeError, match=r"expected a tensor as input 'mask', got list; torch.as_tensor makes one"):
        check_dataset(Named(values=torch.zeros(3), mask=[1, 1]))
