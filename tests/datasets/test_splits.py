"""Splits and few labels: complete, stratified, the same for the same seed."""

import pytest
import torch

from kdx.datasets import few_labels, train_validation_split

TARGETS = torch.arange(10).repeat_interleave(torch.arange(20, 120, 10))  # 20, 30, ..., 110 rows: 650 in all


def test_the_parts_are_disjoint_complete_and_ascending():
    train, validation = train_validation_split(TARGETS, validation=130)
    assert (len(train), len(validation)) == (520, 130)
    assert torch.equal(torch.cat([train, validation]).sort().values, torch.arange(650))
    assert (train.diff() > 0).all()
    assert (validation.diff() > 0).all()


@pytest.mark.parametrize("validation", [1, 7, 130, 333, 649])
def test_every_class_gives_its_share_up_to_one_row(validation):
    _, rows = train_validation_split(TARGETS, validation=validation, seed=3)
    assert len(rows) == validation
    exact = TARGETS.bincount() * validation / 650
    assert ((TARGETS[rows].bincount(minlength=10) - exact).abs() < 1).all()


def test_the_seed_and_nothing_else_chooses_the_rows():
    torch.manual_seed(1)
    first = train_validation_split(TARGETS, validation=100, seed=5)[1]
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(train_validation_split(TARGETS, validation=100, seed=5)[1], first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(train_validation_split(TARGETS, validation=100, seed=6)[1], first)


def test_few_labels_keeps_equally_many_labels_of_each_class():
    kept = few_labels(TARGETS, labelled=100)
    shown = kept != -100
    assert kept[shown].bincount().tolist() == [10] * 10
    assert torch.equal(kept[shown], TARGETS[shown])
    assert torch.equal(few_labels(TARGETS, labelled=100), kept)
    assert not torch.equal(few_labels(TARGETS, labelled=100, seed=1), kept)
    assert (TARGETS >= 0).all()  # the argument is not changed


def test_fewer_labels_are_a_subset_of_more_labels():
    few, more = few_labels(TARGETS, labelled=50), few_labels(TARGETS, labelled=150)
    assert (more[few != -100] != -100).all()


def test_hidden_labels_stay_hidden():
    hidden = few_labels(TARGETS, labelled=100)
    again = few_labels(hidden, labelled=40, seed=9)
    assert (again != -100).sum() == 40
    assert (hidden[again != -100] != -100).all()


def test_rare_classes_keep_their_share_of_labels_if_not_balanced():
    targets = torch.tensor([0] * 60 + [1] * 39 + [2])
    with pytest.raises(ValueError, match=r"at most 3, or balanced=False \(in a recipe data\.balanced: false\)"):
        few_labels(targets, labelled=30)
    kept = few_labels(targets, labelled=20, balanced=False)
    assert kept[kept != -100].bincount().tolist() == [12, 8]
    hidden = targets.where(targets != 0, -100)
    assert (few_labels(hidden, labelled=40, balanced=False) != -100).nonzero().squeeze(1).tolist() == [*range(60, 100)]
    with pytest.raises(ValueError, match="number of labelled rows, 40; got 41"):
        few_labels(hidden, labelled=41, balanced=False)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: train_validation_split(TARGETS, validation=650), ValueError, "between 1 and 649"),
        (lambda: train_validation_split(TARGETS, validation=0), ValueError, "got 0"),
        (lambda: train_validation_split(TARGETS.float(), validation=9), TypeError, "int64.*float32"),
        (lambda: train_validation_split(TARGETS[None], validation=9), ValueError, r"one dimension.*\[1, 650\]"),
        (lambda: train_validation_split(TARGETS - 1, validation=9), ValueError, "split the rows first"),
        (lambda: few_labels(TARGETS, labelled=105), ValueError, "multiple of the number of classes, 10"),
        (lambda: few_labels(TARGETS, labelled=0), ValueError, "got 0"),
        (lambda: few_labels(TARGETS, labelled=210), ValueError, "one class has 20; use at most 200"),
        (lambda: few_labels(TARGETS - 200, labelled=10), ValueError, "number of classes, 0"),
    ],
)
def test_errors_name_the_argument_and_the_way_out(call, error, message):
    with pytest.raises(error, match=message):
        call()
