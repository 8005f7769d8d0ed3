"""What comes in later batches and in evaluations is looked at: labels, indices, numbers, dtypes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import kdx
from kdx.errors import ComponentError, KdxError
from kdx.schemes import PSKD
from kdx.tasks import Heads
from kdx.training.evaluation import evaluate
from kdx.training.incoming import holes

CLASSES = torch.arange(8) % 3
X = torch.randn(8, 4)


def broken(row: int, value: float) -> Tensor:
    inputs = X.clone()
    inputs[row, 1] = value
    return inputs


def fit(train, scheme=None, **options):
    return kdx.fit(scheme or kdx.Supervised(nn.Linear(4, 3)), train, device="cpu", **options)


class Rows(Dataset):
    """Rows with an index, and labels that the data set tells, which may be changed on the way."""

    def __init__(self, targets: Tensor, shift: int = 0) -> None:
        self.targets, self.shift = targets, shift

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> kdx.Batch:
        return kdx.Batch(X[row % 8], self.targets[row] + self.shift, torch.tensor(row))


@pytest.mark.parametrize(
    "task", [kdx.tasks.Classification(), F.cross_entropy, (0.5, nn.CrossEntropyLoss())], ids=range(3)
)
@pytest.mark.parametrize("value", [3, -1])
def test_a_label_out_of_range_in_a_later_batch_is_named_with_its_step(task, value) -> None:
    later = torch.where(CLASSES == 2, value, CLASSES)
    scheme = kdx.Supervised(nn.Linear(4, 3), task=task)
    message = rf"step 3: the task .* expected classes 0 \.\. 2, .* got {value} in row 2 and 1 more"
    with pytest.raises(ComponentError, match=message) as failed:
        fit([(X, CLASSES), (X, CLASSES), (X, later)], scheme)
    assert isinstance(failed.value, ValueError)


def test_a_label_out_of_range_in_a_later_micro_batch_of_the_first_step_is_named() -> None:
    student = nn.Linear(4, 3)
    before = student.weight.clone()
    with pytest.raises(ComponentError, match=r"step 1: the task .* got 3 in row 0"):
        fit([(X, CLASSES), (X, CLASSES + 3)], kdx.Supervised(student), accumulate=2)
    assert torch.equal(student.weight, before)


def test_the_labels_that_a_data_set_tells_are_looked_at_before_the_first_step() -> None:
    student = nn.Linear(4, 3)
    before = student.weight.clone()
    rows = Rows(torch.cat([CLASSES, CLASSES, torch.tensor([0, 7])]))
    with pytest.raises(ComponentError, match=r"the labels of the data set: the task .* got 7 in row 17"):
        fit(DataLoader(rows, 6), kdx.Supervised(student))
    assert torch.equal(student.weight, before)


def test_labels_that_are_changed_on_the_way_are_looked_at_as_they_come() -> None:
    assert fit(DataLoader(Rows(CLASSES + 5, shift=-5), 4)).step == 2


@pytest.mark.parametrize(
    ("task", "width", "good", "bad", "message"),
    [
        ("multi-label", 3, torch.ones(8, 3), torch.full((8, 3), 2.0), "expected targets 1 .* got 2 .. 2"),
        ("binary", 1, torch.ones(8), torch.full((8,), -1.0), "expected targets 1 .* got -1 .. -1"),
        ("regression", 2, torch.ones(8, 2), torch.full((8, 2), torch.inf), "expected finite targets"),
        ("embedding", 3, CLASSES, CLASSES - 2, "expected classes from 0, or -100 for no label, got -2"),
    ],
)
def test_every_task_says_what_a_later_batch_and_an_evaluation_cannot_mean(task, width, good, bad, message) -> None:
    scheme = kdx.Supervised(nn.Linear(4, width), task=kdx.make("task", task))
    with pytest.raises(ComponentError, match=f"step 2: the task .* {message}"):
        fit([(X, good), (X, bad)], scheme)
    with pytest.raises(ComponentError, match=f"batch 2 of the evaluation: metric .* {message}"):
        fit([(X, good)], scheme, evaluate=[(X, good), (X, bad)])


@pytest.mark.parametrize(("task", "shape"), [("segmentation", (3, 2, 2)), ("token-classification", (2, 3))])
def test_pixels_and_tokens_are_of_a_class_of_the_outputs(task, shape) -> None:
    student = nn.Sequential(nn.Linear(4, math.prod(shape)), nn.Unflatten(1, shape))
    elements = (8, 2, 2) if task == "segmentation" else (8, 2)
    good, bad = torch.full(elements, -100), torch.full(elements, 3)
    good[:, 0] = 1
    scheme = kdx.Supervised(student, task=kdx.make("task", task))
    with pytest.raises(ComponentError, match=r"step 2: the task .* expected classes 0 \.\. 2, .* got 3 in row 0"):
        fit([(X, good), (X, bad)], scheme)
    with pytest.raises(ComponentError, match=r"batch 2 of the evaluation: metric .* expected classes 0 \.\. 2"):
        fit([(X, good)], scheme, evaluate=[(X, good), (X, bad)])


class TwoHeads(nn.Module):
    """A class and a quantity."""

    def __init__(self) -> None:
        super().__init__()
        self.kind, self.size = nn.Linear(4, 3), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"kind": self.kind(x), "size": self.size(x)}


def test_the_head_whose_label_is_out_of_range_is_named() -> None:
    scheme = kdx.Supervised(TwoHeads(), task=Heads({"kind": "classification", "size": "regression"}))
    good, bad = ({"kind": kind, "size": torch.ones(8, 1)} for kind in (CLASSES, CLASSES + 1))
    with pytest.raises(ComponentError, match=r"step 2: the task .* head 'kind': .* expected classes 0 \.\. 2"):
        fit([(X, good), (X, bad)], scheme)
    with pytest.raises(ComponentError, match=r"batch 2 of the evaluation: metric 'kind/accuracy'.* classes 0 \.\. 2"):
        fit([(X, good)], scheme, evaluate=[(X, good), (X, bad)])


def test_labels_that_nothing_learns_from_are_not_looked_at() -> None:
    scheme = kdx.Offline(nn.Linear(4, 3), nn.Linear(4, 3), task=None, knowledge={"kd": kdx.SoftTargets(4.0)})
    assert fit([(X, CLASSES), (X, CLASSES + 9)], scheme).step == 2


@pytest.mark.parametrize(
    ("index", "message"),
    [(torch.arange(8) - 1, "from 0, and holds -1"), (torch.arange(8) + 5, "samples is 8, but batch.index holds 12")],
)
def test_an_index_that_names_no_sample_is_refused_in_a_later_step(index, message) -> None:
    batches = [kdx.Batch(X, CLASSES, torch.arange(8)), kdx.Batch(X, CLASSES, index)]
    with pytest.raises(ValueError, match=f"ps-kd: .*{message}|step 2: PSKD: .*{message}"):
        fit(batches, PSKD(nn.Linear(4, 3), samples=8))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_no_numbers_are_named_with_their_sample(value) -> None:
    with pytest.raises(
        ValueError, match=r"the first batch of train: its inputs are NaN .* in 1 of 8 rows \(row 3\); mend"
    ):
        fit([(broken(3, value), CLASSES)])
    later = kdx.Batch(broken(3, value), CLASSES, torch.arange(8) + 40)
    message = r"not finite at step 2 \(task=nan\); inputs are NaN or infinite in 1 of 8 rows \(sample 43\): mend"
    with pytest.raises(KdxError, match=message):
        fit([(X, CLASSES), later, (X, CLASSES)])


def test_a_mask_of_minus_infinity_beside_other_inputs_is_taken() -> None:
    mask = torch.full((8, 4), -torch.inf)
    assert holes(kdx.Batch({"x": X, "mask": mask})) is None
    assert holes(kdx.Batch({"x": broken(2, torch.nan), "mask": mask})) == "inputs['x'] are NaN in 1 of 8 rows (row 2)"
    assert holes(kdx.Batch((X.long(), X))) is None


def test_an_evaluation_says_which_samples_make_outputs_nan() -> None:
    model = nn.Linear(4, 3)
    bad = kdx.Batch(broken(5, torch.nan), CLASSES, torch.arange(8) + 8)
    message = r"batch 2 of the evaluation: the model .* its outputs are NaN, as its inputs .* \(sample 13\); mend"
    with pytest.raises(ComponentError, match=message):
        evaluate(model, [(X, CLASSES), bad])
    with pytest.raises(ComponentError, match=message):
        fit([(X, CLASSES)], evaluate=[(X, CLASSES), bad])
    nn.init.constant_(model.weight, torch.nan)
    with pytest.raises(
        ComponentError, match=r"batch 1 of .* outputs are NaN, and its inputs are numbers; it has diverged"
    ):
        evaluate(model, [(X, CLASSES)])


def test_an_evaluation_of_no_rows_or_no_labels_is_said() -> None:
    model = nn.Linear(4, 3)
    with pytest.raises(ValueError, match="batches without a row"):
        evaluate(model, [(X[:0], CLASSES[:0])])
    with pytest.warns(UserWarning, match="the metrics accuracy are NaN over 8 rows: none has a label"):
        found = evaluate(model, [(X, torch.full((8,), -100))])
    assert found["accuracy"] != found["accuracy"]


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (
            Tensor.byte,
            r"inputs are torch.uint8, and the model computes in torch.float32; give floats, images of bytes as",
        ),
        (Tensor.double, r"inputs are torch.float64, and the parameters torch.float32; give inputs.to\(torch.float32\)"),
        (Tensor.half, r"inputs are torch.float16, and the parameters torch.float32; give inputs.to"),
        (Tensor.long, r"inputs are torch.int64, and the model computes in torch.float32; give floats"),
    ],
)
@pytest.mark.parametrize(
    "first", [nn.Conv2d(1, 3, 2), nn.Sequential(nn.Flatten(2), nn.Linear(4, 1), nn.Unflatten(1, (1, 1)))]
)
def test_inputs_of_another_dtype_are_one_sentence(first, convert, message) -> None:
    student = nn.Sequential(first, nn.Flatten(), nn.LazyLinear(3))
    images = torch.rand(8, 1, 2, 2)
    student(images)
    with pytest.raises(ComponentError, match=message):
        fit([(convert(images), CLASSES)], kdx.Supervised(student))
    with pytest.raises(ComponentError, match=f"batch 1 of the evaluation: .* {message}"):
        fit([(images, CLASSES)], kdx.Supervised(student), evaluate=[(convert(images), CLASSES)])


def test_ids_of_words_are_inputs_of_integers() -> None:
    student = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3))
    assert fit([(torch.randint(5, (8, 2)), CLASSES)], kdx.Supervised(student)).step == 1
