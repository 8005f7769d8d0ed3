"""Rank correlation of a proxy with the truth."""

import numpy as np
import pytest
from kdx_search import agreement


def test_tau_counts_the_pairs_in_order() -> None:
    proxy, truth = [1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 3.0, 2.0, 4.0, 5.0]
    found = agreement(proxy, truth)
    assert found.tau == pytest.approx((9 - 1) / 10)
    assert found.low <= found.tau <= found.high
    assert found == agreement(proxy, truth)
    tied = [1.0, 1.0, 2.0, 3.0, 3.0]
    assert agreement(tied, truth, resamples=1).tau == pytest.approx(
        6 / (8 * 10) ** 0.5
    )  # 7 pairs in order, 1 not, 8 and 10 untied
    assert agreement(proxy, [-value for value in proxy]).tau == pytest.approx(-1)


def test_the_interval_holds_nothing_where_there_is_nothing() -> None:
    generator = np.random.default_rng(0)
    drawn = [agreement(generator.random(12), generator.random(12), resamples=200) for _ in range(20)]
    assert sum(found.low < 0 < found.high for found in drawn) >= 17
    assert sum(found.p_value > 0.05 for found in drawn) >= 17
    strong = agreement(range(12), range(12))
    assert strong.p_value < 1e-4
    assert strong.low == 1
    assert str(strong).startswith("tau 1.00 [1.00, 1.00], p = ")


@pytest.mark.parametrize(
    ("proxy", "truth", "match"),
    [
        ([1.0, 2.0], [1.0, 2.0], "three sub-networks or more; got 2 and 2"),
        ([1.0, 2.0, 3.0], [1.0, 2.0], "got 3 and 2"),
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], "there is no order"),
        ([1.0, 2.0, float("nan")], [1.0, 2.0, 3.0], "must be finite"),
    ],
)
def test_judgements_without_an_order_are_refused(proxy, truth, match) -> None:
    with pytest.raises(ValueError, match=match):
        agreement(proxy, truth)
