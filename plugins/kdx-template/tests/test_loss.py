"""Transformed teacher matching against float64 NumPy, and the conformance kit."""

import numpy as np
import pytest
import torch
from kdx_template.loss import TransformedTeacher, transformed_teacher

from kdx.testing import parametrize_checks


@parametrize_checks(TransformedTeacher(temperature=2.0))
def test_conformance(check) -> None:
    check()


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_value_is_that_of_the_formula(temperature) -> None:
    rng = np.random.default_rng(0)
    s, t = rng.normal(0, 3, (2, 7, 5))
    p, q = softmax(t / temperature), softmax(s)
    expected = (p * (np.log(p) - np.log(q))).sum() / 7
    found = transformed_teacher(torch.from_numpy(s), torch.from_numpy(t), temperature=temperature)
    np.testing.assert_allclose(found.item(), expected, rtol=1e-12)


def test_the_student_is_not_softened() -> None:
    """With z_s = z_t / T the two agree: the temperature belongs to the teacher alone."""
    z = torch.randn(4, 6, dtype=torch.float64)
    assert transformed_teacher(z / 3, z, temperature=3.0).abs() < 1e-15
    assert transformed_teacher(z, z, temperature=3.0) > 0.01


def test_a_temperature_that_is_not_positive_is_named() -> None:
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        TransformedTeacher(0)
