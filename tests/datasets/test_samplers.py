"""Pairs of one class: who is paired with whom, how often, and that they are drawn anew."""

from __future__ import annotations

import pytest
import torch

from kdx.datasets.samplers import SameClassPairs

TARGETS = torch.tensor([0, 1, 2, 1, -100, 0, 1, 1, 3])


def test_partners_are_other_rows_of_the_class_and_all_of_them_come() -> None:
    sampler = SameClassPairs(TARGETS, 4)
    met: dict[int, set[int]] = {}
    for _ in range(60):
        batches = list(sampler)
        anchors = [row for batch in batches for row in batch[:4]]
        assert sorted(anchors) == [0, 1, 2, 3, 5, 6, 7, 8]  # each labelled row once
        for batch in batches:
            for anchor, partner in zip(batch[:4], batch[4:], strict=True):
                met.setdefault(anchor, set()).add(partner)
    assert met == {0: {5}, 5: {0}, 1: {3, 6, 7}, 3: {1, 6, 7}, 6: {1, 3, 7}, 7: {1, 3, 6}, 2: {2}, 8: {8}}


def test_partners_are_drawn_uniformly() -> None:
    sampler = SameClassPairs([0] * 4, 4)
    counts = torch.zeros(4, 4)
    for _ in range(600):
        ((*rows,),) = list(sampler)
        counts[rows[:4], rows[4:]] += 1
    expected = 200 * (1 - torch.eye(4))
    chi_square = ((counts - expected).square() / expected.clamp(min=1)).sum()
    assert chi_square < 30  # 8 degrees of freedom: exceeded once in 5,000


@pytest.mark.parametrize(("pairs", "num_samples", "batches"), [(3, None, 3), (5, 17, 4), (2, 3, 2), (20, 1, 1)])
def test_an_epoch_may_be_longer_or_shorter_than_the_rows_and_its_batches_are_full(pairs, num_samples, batches) -> None:
    sampler = SameClassPairs(TARGETS, pairs, num_samples=num_samples)
    found = list(sampler)
    assert len(sampler) == len(found) == batches
    assert {len(batch) for batch in found} == {2 * pairs} == {sampler.batch_size}
    anchors = [row for batch in found for row in batch[:pairs]]
    for start in range(0, len(anchors), 8):  # every round goes through the labelled rows without one twice
        once = anchors[start : start + 8]
        assert len(set(once)) == len(once)
        assert set(once) <= {0, 1, 2, 3, 5, 6, 7, 8}
    for batch in found:
        assert TARGETS[batch[:pairs]].equal(TARGETS[batch[pairs:]])


def test_the_seed_gives_the_epoch_and_the_next_one_differs() -> None:
    sampler = SameClassPairs(torch.arange(64) % 4, 8)
    torch.manual_seed(1)
    first, second = list(sampler), list(sampler)
    torch.manual_seed(1)
    assert list(sampler) == first
    assert first != second


def test_bad_arguments_say_what_was_expected() -> None:
    with pytest.raises(ValueError, match="targets has no row with a label"):
        SameClassPairs([-100, -100], 2)
    with pytest.raises(ValueError, match="pairs must be >= 1, got 0"):
        SameClassPairs([0, 0], 0)
    with pytest.raises(ValueError, match="num_samples must be >= 1, got 0"):
        SameClassPairs([0, 0], 1, num_samples=0)
