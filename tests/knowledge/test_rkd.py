"""RKD as a component against numpy; the op's own tests are in tests/ops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import kdx
from kdx.capture import Captured
from kdx.errors import UnknownNameError
from kdx.knowledge.rkd import RKD, rkd


def huber(z):
    return 0.5 * z * z if abs(z) < 1 else abs(z) - 0.5


def normalised_distances(x):
    d = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
    return d / d[d > 0].mean() if (d > 0).any() else d


def cosine(x, i, j, k):
    a, b = x[j] - x[i], x[k] - x[i]
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.dot(a, b) / lengths) if lengths > 0 else 0.0


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def oracle(s, t, distance_weight, angle_weight):
    n = len(s)
    d, e = normalised_distances(s), normalised_distances(t)
    distance = sum(huber(d[i, j] - e[i, j]) for i, j in itertools.product(range(n), repeat=2)) / n**2
    triples = itertools.product(range(n), repeat=3)
    angle = sum(huber(cosine(s, i, j, k) - cosine(t, i, j, k)) for i, j, k in triples) / n**3
    return distance_weight * distance + angle_weight * angle


@pytest.mark.parametrize(("distance_weight", "angle_weight"), [(25.0, 50.0), (1.0, 0.0), (0.0, 2.0)])
@pytest.mark.parametrize(("student_l2", "teacher_l2"), [(False, False), (False, True), (True, True)])
def test_values(random, distance_weight, angle_weight, student_l2, teacher_l2):
    s, t = random(6, 5, seed=1, std=3.0), random(6, 4, seed=2)
    got = rkd(
        s,
        t,
        distance_weight=distance_weight,
        angle_weight=angle_weight,
        student_l2=student_l2,
        teacher_l2=teacher_l2,
    )
    rows = unit(s.numpy()) if student_l2 else s.numpy(), unit(t.numpy()) if teacher_l2 else t.numpy()
    assert got.item() == pytest.approx(oracle(*rows, distance_weight, angle_weight), rel=1e-9)


def test_by_default_weights_are_those_for_classification_and_features_are_not_scaled(random):
    s, t = random(6, 5, seed=1), random(6, 4, seed=2)
    got = RKD()(Captured({"logits": s}), Captured({"logits": t}), None)
    assert got.item() == pytest.approx(oracle(s.numpy(), t.numpy(), 25.0, 50.0), rel=1e-9)


def test_duplicates_and_points_that_are_all_equal(random):
    s, t = random(6, 5, seed=1), random(6, 4, seed=2)
    s[4] = s[3]
    assert rkd(s, t).item() == pytest.approx(oracle(s.numpy(), t.numpy(), 25.0, 50.0), rel=1e-9)
    same = torch.ones(6, 5, dtype=torch.float64, requires_grad=True)
    loss = rkd(same, t)
    loss.backward()
    assert loss.item() == pytest.approx(oracle(np.ones((6, 5)), t.numpy(), 25.0, 50.0), rel=1e-9)
    assert (same.grad == 0).all()


def test_what_holds_for_relations(check_relation):
    # The angles of a point with its own mirror image and with zero rows are as good as any others.
    check_relation(lambda s, t: rkd(s, t, distance_weight=1.0, angle_weight=2.0))


def test_scaled_rows_of_zeros_stay_finite(random):
    s, t = random(5, 4, seed=1), random(5, 4, seed=2)
    s[0] = 0
    s.requires_grad_()
    rkd(s, t, student_l2=True).backward()
    assert torch.isfinite(s.grad).all()


def test_rotation_translation_and_uniform_scale_change_nothing(random):
    s, t = random(6, 5, seed=1), random(6, 5, seed=2)
    rotation, _ = torch.linalg.qr(random(5, 5, seed=3))
    torch.testing.assert_close(rkd(3 * s @ rotation + random(1, 5, seed=4), t), rkd(s, t))


def test_layers_add_up_and_the_recipe_name_makes_it(random):
    s = {"a": random(4, 3, 2, 2, seed=1), "b": random(4, 6, seed=2)}
    t = {"x": random(4, 5, seed=3), "y": random(4, 2, seed=4)}
    component = kdx.make("knowledge", "rkd", student=("a", "b"), teacher=("x", "y"))
    both = component(Captured(s), Captured(t), None)
    torch.testing.assert_close(both, rkd(s["a"], t["x"]) + rkd(s["b"], t["y"]))


def test_the_component_stands_what_all_do(random, check_component):
    component = RKD(student="a", teacher="b", teacher_l2=True)
    check_component(component, {"a": random(6, 5, seed=1)}, {"b": random(6, 4, seed=2)})


def test_a_named_backend_is_asked_and_delta_checked(random):
    s = random(4, 3)
    torch.testing.assert_close(rkd(s, s + 1, backend="reference"), torch.tensor(0.0, dtype=torch.float64))
    with pytest.raises(UnknownNameError, match="backend: there is none named 'nonsense'"):
        rkd(s, s, backend="nonsense")
    with pytest.raises(ValueError, match="delta must be > 0"):
        RKD(delta=0)
