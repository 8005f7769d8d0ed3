"""Symmetric label noise: the exact share, always another class, all other classes alike."""

import pytest
import torch

from kdx.datasets import symmetric_noise

TARGETS = torch.arange(10).repeat(1000)


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.45678, 1.0])
def test_exactly_this_share_is_wrong(fraction):
    noisy = symmetric_noise(TARGETS, fraction, num_classes=10)
    assert int((noisy != TARGETS).sum()) == round(fraction * 10_000)
    assert 0 <= int(noisy.min()) <= int(noisy.max()) <= 9


def test_all_other_classes_are_equally_likely():
    noisy = symmetric_noise(TARGETS, 1.0, num_classes=10, seed=1)
    counts = torch.zeros(10, 10).index_put_((TARGETS, noisy), torch.ones(10_000), accumulate=True)
    off_diagonal = counts[~torch.eye(10, dtype=torch.bool)]
    chi2 = ((off_diagonal - 1000 / 9) ** 2 / (1000 / 9)).sum()
    assert counts.diagonal().sum() == 0
    assert chi2 < 124.8  # 99.9 % point of chi-square with 80 degrees of freedom


def test_rows_without_label_stay_so_and_do_not_count():
    targets = TARGETS.clone()
    targets[::2] = -100
    noisy = symmetric_noise(targets, 0.4, num_classes=10)
    assert (noisy[::2] == -100).all()
    assert int((noisy != targets).sum()) == 2000


def test_the_seed_decides():
    first = symmetric_noise(TARGETS, 0.3, num_classes=10, seed=4)
    assert torch.equal(symmetric_noise(TARGETS, 0.3, num_classes=10, seed=4), first)
    assert not torch.equal(symmetric_noise(TARGETS, 0.3, num_classes=10, seed=5), first)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: symmetric_noise(TARGETS, 1.2, num_classes=10), ValueError, "fraction.*got 1.2"),
        (lambda: symmetric_noise(TARGETS, 0.2, num_classes=9), ValueError, "larger than every target; got 9.*up to 9"),
        (lambda: symmetric_noise(TARGETS * 0, 0.2, num_classes=1), ValueError, "at least 2"),
        (lambda: symmetric_noise(TARGETS.int(), 0.2, num_classes=10), TypeError, "int64.*int32"),
        (lambda: symmetric_noise(TARGETS[None], 0.2, num_classes=10), ValueError, "one dimension"),
    ],
)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()
