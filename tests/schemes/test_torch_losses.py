"""Labels that a loss of torch cannot mean are refused in one sentence, in training and in evaluation."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kdx
from kdx.schemes.torch_losses import checks_of

CLASSES = torch.arange(8) % 3
LOSSES = [F.cross_entropy, nn.CrossEntropyLoss(), functools.partial(F.cross_entropy, label_smoothing=0.1)]
WRONG = [
    (CLASSES + 1, ValueError, r"expected classes 0 .. 2, as the outputs have 3 .* got 3 in row 2 and 1 more"),
    (CLASSES - 1, ValueError, r"expected classes 0 .. 2, .* got -1 in row 0 and 2 more"),
    (
        CLASSES.float(),
        ValueError,
        r"soft labels of shape \[8, 3\] .* got \[8\]; .* give class numbers as targets.long\(\)",
    ),
    (
        F.one_hot(CLASSES, 3),
        ValueError,
        r"class numbers of shape \[8\] as targets, got \[8, 3\]; of one-hot targets give",
    ),
    (CLASSES > 0, TypeError, r"expected targets of int64, .* got torch.bool; give targets.long\(\)"),
    (CLASSES.int(), TypeError, r"got torch.int32; give targets.long\(\)"),
    (CLASSES.byte(), TypeError, r"got torch.uint8; give targets.long\(\)"),
    (
        CLASSES[:, None],
        ValueError,
        r"class numbers of shape \[8\] as targets, got \[8, 1\]; give targets.squeeze\(-1\)",
    ),
    (CLASSES[:5], ValueError, r"class numbers of shape \[8\] as targets, got \[5\]"),
    (torch.full((8, 3), 0.5), ValueError, r"soft labels, probabilities that sum to 1 along axis 1, got a sum of 1.5"),
]


def batches(*targets: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(8, 4), each) for each in targets]


def fit(task, train, **options):
    scheme = kdx.Supervised(nn.Linear(4, 3)) if task is None else kdx.Supervised(nn.Linear(4, 3), task=task)
    return kdx.fit(scheme, train, device="cpu", **options)


@pytest.mark.parametrize("task", [None, *LOSSES, (0.5, F.cross_entropy)], ids=range(5))
@pytest.mark.parametrize(("targets", "error", "message"), WRONG)
def test_wrong_class_numbers_are_refused_before_the_first_step(task, targets, error, message) -> None:
    with pytest.raises(error, match=message):
        fit(task, batches(targets))


@pytest.mark.parametrize("task", [None, F.cross_entropy], ids=range(2))
@pytest.mark.parametrize(("targets", "error", "message"), WRONG)
def test_wrong_class_numbers_are_no_misses_in_an_evaluation(task, targets, error, message) -> None:
    with pytest.raises(error, match=rf"metric 'accuracy', .* {message}"):
        fit(task, batches(CLASSES), evaluate=batches(CLASSES, targets))


@pytest.mark.parametrize("task", [None, *LOSSES], ids=range(4))
def test_class_numbers_unlabelled_rows_and_soft_labels_are_taken(task) -> None:
    some = torch.where(CLASSES == 2, -100, CLASSES)
    data = batches(CLASSES, some, torch.full((8, 3), 1 / 3), F.one_hot(CLASSES, 3).float())
    assert fit(task, data, evaluate=data).step == 4


def test_another_ignored_number_is_that_of_the_loss() -> None:
    void = functools.partial(F.cross_entropy, ignore_index=255)
    assert fit(void, batches(torch.where(CLASSES == 2, 255, CLASSES))).step == 1
    with pytest.raises(ValueError, match=r"expected classes 0 .. 2, .* \(or 255 for no label\), got -100 in row 2"):
        fit(void, batches(torch.where(CLASSES == 2, -100, CLASSES)))


@pytest.mark.parametrize("task", [F.nll_loss, nn.NLLLoss()], ids=range(2))
def test_a_loss_of_class_numbers_alone_takes_no_soft_labels(task) -> None:
    with pytest.raises(
        TypeError, match=r"(nll_loss|NLLLoss): expected class numbers of int64 as targets, got torch.float32"
    ):
        fit(task, batches(torch.full((8, 3), 1 / 3)))


@pytest.mark.parametrize(
    "task", [F.mse_loss, nn.L1Loss(), F.huber_loss, F.binary_cross_entropy_with_logits], ids=range(4)
)
def test_targets_that_broadcasting_would_spread_are_refused(task) -> None:
    scheme = kdx.Supervised(nn.Linear(4, 1), task=task)
    with pytest.raises(
        ValueError, match=r"expected targets of the shape of the outputs, \[8, 1\], .* got \[8\]; reshape"
    ):
        kdx.fit(scheme, [(torch.randn(8, 4), torch.rand(8))], device="cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_targets_that_are_no_numbers_are_refused(value) -> None:
    targets = torch.rand(8, 3)
    targets[3, 1] = value
    with pytest.raises(ValueError, match="mse_loss: expected finite targets, got NaN or an infinite one"):
        fit(F.mse_loss, batches(targets))
    with pytest.raises(ValueError, match=r"expected finite targets|soft labels of NaN"):
        fit(F.cross_entropy if value != value else F.l1_loss, batches(targets))


@pytest.mark.parametrize("task", [F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss()], ids=range(2))
def test_probabilities_lie_between_0_and_1(task) -> None:
    with pytest.raises(
        ValueError, match=r"expected targets from 0 to 1, got 0 \.\. 2; .* for class numbers take cross_entropy"
    ):
        fit(task, batches(CLASSES[:, None].expand(8, 3).float()))


def test_a_function_of_ones_own_is_not_checked() -> None:
    assert checks_of(lambda logits, targets: logits.sum()) is None
