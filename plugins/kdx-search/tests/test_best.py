"""The search within a budget: what it finds, what it asks, what it refuses."""

from __future__ import annotations

import pytest
from kdx_search import Space, best_choice
from search_nets import Wide, images, seeded

from kdx.students import StudentError

SPACE = Space.of(seeded(Wide), images())


def deep_and_thin(choice) -> float:
    """A score whose best is known: depth counts most, then narrow blocks, then a wide stem."""
    blocks = choice["width:blocks.0.conv1"] + choice["width:blocks.1.conv1"]
    return 100 * choice["depth:blocks"] - blocks + 0.1 * choice["width:stem"] + choice["kernel:stem"]


def test_it_finds_more_than_it_would_at_random_and_asks_for_no_network_twice() -> None:
    asked = []

    def score(choice) -> float:
        asked.append(tuple(choice.items()))
        return deep_and_thin(choice)

    best = deep_and_thin({**SPACE.largest, "width:blocks.0.conv1": 4, "width:blocks.1.conv1": 4})
    scores = {"evolution": 0.0, "random": 0.0}
    for strategy in scores:
        for seed in range(5):
            asked.clear()
            found = best_choice(SPACE, score, evaluations=16, strategy=strategy, seed=seed)
            assert len(asked) == len(set(asked)) == len(found.judged) == 16
            assert found.best.score == max(map(deep_and_thin, map(dict, asked)))
            scores[strategy] += found.best.score / 5
    assert best >= scores["evolution"] > scores["random"]


@pytest.mark.parametrize("budget", [{"flops": "40%"}, {"params": 400}, {"params": "60%", "flops": 0.5}])
def test_all_that_are_judged_are_within_the_budget(budget) -> None:
    found = best_choice(SPACE, deep_and_thin, evaluations=12, **budget)
    largest = SPACE.cost(SPACE.largest)
    most = {
        "parameters": {"60%": 0.6 * largest.parameters, 400: 400}.get(budget.get("params"), float("inf")),
        "flops": {"40%": 0.4 * largest.flops, 0.5: 0.5 * largest.flops}.get(budget.get("flops"), float("inf")),
    }
    for one in found.judged:
        assert one.cost == SPACE.cost(one.choice)
        assert one.cost.parameters <= most["parameters"]
        assert one.cost.flops <= most["flops"]


def test_the_front_is_what_nothing_beats() -> None:
    found = best_choice(SPACE, deep_and_thin, evaluations=30)
    front = found.front
    assert front[-1] == found.best
    for one in found.judged:
        assert any(other.cost.flops <= one.cost.flops and other.score >= one.score for other in front)
    assert [one.score for one in front] == sorted(one.score for one in front)


def test_it_is_the_same_again_and_looks_at_all_of_a_small_space() -> None:
    one, other = (best_choice(SPACE, deep_and_thin, evaluations=10, seed=4) for _ in range(2))
    assert one.judged == other.judged
    small = Space.of(seeded(Wide), images(), widths=(1.0,), kernels=False)
    assert len(best_choice(small, lambda choice: choice["depth:blocks"], evaluations=50).judged) == len(small) == 2


def test_a_budget_that_nothing_meets_is_refused_with_the_nearest_one() -> None:
    least = SPACE.cost(SPACE.smallest)
    with pytest.raises(StudentError, match=rf"has at most 10 parameters: the smallest has {least.parameters}"):
        best_choice(SPACE, deep_and_thin, params=10)
    with pytest.raises(StudentError, match=rf"flops: the smallest has {least.flops:,}, that is .*% of the largest"):
        best_choice(SPACE, deep_and_thin, flops="0.1%")
    with pytest.raises(ValueError, match="evaluations must be a whole number, 1 or more; got 0"):
        best_choice(SPACE, deep_and_thin, evaluations=0)
    with pytest.raises(ValueError, match="strategy must be 'evolution' or 'random'; got 'luck'"):
        best_choice(SPACE, deep_and_thin, strategy="luck")
