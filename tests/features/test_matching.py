"""Strategies and similarities that pair layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdx.errors import UnknownNameError
from kdx.features.matching import pair_by_depth, pair_by_similarity, pair_layers
from kdx.features.similarity import SIMILARITIES, MinibatchCKA, linear_cka, rsa, similarity_matrix, unbiased_cka


@pytest.fixture
def draw():
    return lambda *shape, seed=0: torch.from_numpy(np.random.default_rng([seed, *shape]).normal(size=shape))


@pytest.mark.parametrize(
    ("strategy", "students", "teachers", "expected"),
    [
        ("explicit", 3, 3, [0, 1, 2]),
        ("uniform", 3, 6, [1, 3, 5]),
        ("uniform", 4, 2, [0, 0, 1, 1]),
        ("uniform", 1, 5, [4]),
        ("relative", 3, 5, [0, 2, 4]),
        ("relative", 5, 3, [0, 1, 1, 2, 2]),
        ("relative", 1, 5, [4]),
        ("reverse", 3, 5, [4, 2, 0]),
    ],
)
def test_strategies_by_depth_give_the_pairs_one_would_draw(strategy, students, teachers, expected):
    assert pair_by_depth(strategy, students, teachers) == list(enumerate(expected))


def test_attention_pairs_every_layer_with_every_layer():
    assert pair_by_depth("attention", 2, 2) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_random_pairs_come_from_the_seed_alone():
    torch.manual_seed(0)
    first = pair_by_depth("random", 20, 5, seed=3)
    torch.manual_seed(1)
    assert pair_by_depth("random", 20, 5, seed=3) == first
    assert pair_by_depth("random", 20, 5, seed=4) != first
    assert {j for _, j in first} <= set(range(5))


def test_relative_uses_the_depths_it_is_given():
    positions = ([0.1, 0.9], [0.0, 0.85, 0.95, 1.0])
    assert pair_by_depth("relative", 2, 4, positions=positions) == [(0, 0), (1, 2)]
    assert pair_by_depth("reverse", 2, 4, positions=positions) == [(0, 2), (1, 0)]


def test_wrong_strategies_and_counts_say_what_to_do():
    with pytest.raises(UnknownNameError, match="did you mean 'relative'"):
        pair_by_depth("relativ", 1, 1)
    with pytest.raises(ValueError, match="'explicit' pairs layers one by one, but 2 student and 3 teacher"):
        pair_by_depth("explicit", 2, 3)
    with pytest.raises(ValueError, match="tap at least one"):
        pair_by_depth("uniform", 0, 3)
    with pytest.raises(UnknownNameError, match="cka"):
        similarity_matrix([torch.eye(4)], [torch.eye(4)], similarity="ckaa")


def test_cka_finds_the_layer_a_student_layer_was_made_from(draw):
    layers = [draw(32, 6, seed=i) for i in range(4)]
    rotation = torch.linalg.qr(draw(6, 6, seed=9))[0]
    student = [5 * layers[2] @ rotation + 1, layers[0].flip(1) + 0.1 * draw(32, 6, seed=7)]
    for similarity in SIMILARITIES:
        assert pair_layers(similarity, student, layers) == [(0, 2), (1, 0)]
        with pytest.raises(ValueError, match="needs features"):
            pair_by_depth(similarity, 2, 4)


def test_of_equally_similar_layers_the_deeper_is_taken():
    assert pair_by_similarity(torch.tensor([[0.5, 0.7, 0.7], [1.0, 0.0, 0.0]])) == [(0, 2), (1, 0)]


def test_linear_cka_has_the_value_of_the_oracle_and_its_invariances(draw):
    x, y = draw(10, 3, 2, seed=1), draw(10, 7, seed=2)

    def oracle(a, b):
        a, b = (np.asarray(v).reshape(10, -1) for v in (a, b))
        a, b = a - a.mean(0), b - b.mean(0)
        return np.linalg.norm(b.T @ a) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))

    assert linear_cka(x, y).item() == pytest.approx(oracle(x, y), rel=1e-10)
    rotation = torch.linalg.qr(draw(7, 7, seed=3))[0]
    assert linear_cka(x, 0.01 * y @ rotation - 3).item() == pytest.approx(oracle(x, y), rel=1e-10)
    assert linear_cka(y, y).item() == pytest.approx(1, rel=1e-12)
    assert linear_cka(x, torch.ones(10, 2)).item() == 0
    assert linear_cka(x[:1], y[:1]).item() == 0
    assert linear_cka(x.bfloat16(), y.half()).dtype == torch.float32


def test_rsa_is_the_correlation_of_distances(draw):
    x, y = draw(8, 3, seed=1), draw(8, 5, seed=2)
    upper = np.triu_indices(8, 1)
    distances = [np.linalg.norm(v[:, None] - v[None], axis=2)[upper] for v in (x.numpy(), y.numpy())]
    assert rsa(x, y).item() == pytest.approx(np.corrcoef(*distances)[0, 1], rel=1e-9)
    assert rsa(x, torch.ones(8, 2)).item() == 0
    assert rsa(x[:1], y[:1]).item() == 0


def test_minibatch_cka_has_the_value_of_the_estimator_written_out(draw):
    n = 6
    x, y = draw(n, 4, seed=1).numpy(), draw(n, 3, seed=2).numpy()

    def hsic(a, b):
        k, m = a @ a.T, b @ b.T
        np.fill_diagonal(k, 0)
        np.fill_diagonal(m, 0)
        one = np.ones(n)
        value = (
            np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * one @ k @ m @ one
        )
        return value / (n * (n - 3))

    expected = hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))
    assert unbiased_cka(torch.from_numpy(x), torch.from_numpy(y)).item() == pytest.approx(expected, rel=1e-6)


def test_minibatch_cka_is_near_zero_for_unrelated_layers_where_the_biased_one_is_not(draw):
    x, y = draw(512, 64, seed=1), draw(512, 64, seed=2)
    cka = MinibatchCKA(2, 1)
    for start in range(0, 512, 32):
        cka.update([x[start : start + 32], y[start : start + 32]], [y[start : start + 32]])
    matrix = cka.compute()
    assert matrix.shape == (2, 1)
    assert abs(matrix[0, 0]) < 0.05
    assert matrix[1, 0].item() == pytest.approx(1, rel=1e-5)
    assert linear_cka(x[:32], y[:32]) > 0.5


def test_minibatch_cka_needs_four_samples():
    with pytest.raises(ValueError, match="at least 4 samples, got 3"):
        MinibatchCKA(1, 1).update([torch.randn(3, 2)], [torch.randn(3, 2)])
