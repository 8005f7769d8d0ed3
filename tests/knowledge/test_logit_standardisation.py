"""Logit standardisation against numpy, alone and around other losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from kdx.batch import Batch
from kdx.capture import Captured
from kdx.errors import RecipeError, UnknownNameError
from kdx.knowledge.dkd import DKD, dkd
from kdx.knowledge.logit_standardisation import LogitStandardisation, standardise
from kdx.knowledge.sp import SP

VARIANTS = ["code", "paper"]


def oracle(z, variant):
    ddof = 1 if variant == "code" else 0
    return (z - z.mean(axis=-1, keepdims=True)) / (z.std(axis=-1, ddof=ddof, keepdims=True) + 1e-7)


def kl(s, t, temperature):
    def log_softmax(z):
        z = z / temperature
        z = z - z.max(axis=1, keepdims=True)
        return z - np.log(np.exp(z).sum(axis=1, keepdims=True))

    q, p = log_softmax(s), log_softmax(t)
    return temperature**2 * float((np.exp(p) * (p - q)).sum(axis=1).mean())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(7, 10), (1, 100), (5, 2), (3, 4, 6)])
def test_standardised_rows(random, shape, variant):
    z = random(*shape, std=5.0) + 30
    np.testing.assert_allclose(standardise(z, variant=variant).numpy(), oracle(z.numpy(), variant), rtol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("temperature", [None, 3.0])
def test_by_default_it_is_the_kl_of_standardised_logits_at_temperature_2(random, variant, temperature):
    s, t = random(7, 10, seed=1, std=3.0), random(7, 10, seed=2, std=0.1)
    got = LogitStandardisation(temperature, variant=variant)(Captured({"logits": s}), Captured({"logits": t}), None)
    expected = kl(oracle(s.numpy(), variant), oracle(t.numpy(), variant), temperature or 2.0)
    assert got.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_scale_and_an_offset_of_either_side_change_nothing(random, variant):
    s, t = random(7, 10, seed=1), random(7, 10, seed=2)
    scale, offset = random(7, 1, seed=3).abs() + 0.5, random(7, 1, seed=4)
    component = LogitStandardisation(variant=variant)

    def loss(a, b):
        return component(Captured({"logits": a}), Captured({"logits": b}), None)

    # Up to the epsilon beside the deviation.
    torch.testing.assert_close(loss(scale * s + offset, t), loss(s, t), rtol=1e-6, atol=0)
    torch.testing.assert_close(loss(s, scale * t + offset), loss(s, t), rtol=1e-6, atol=0)
    assert loss(scale * t + offset, t).item() == pytest.approx(0, abs=1e-12)


def test_it_wraps_other_losses_of_logits(random):
    s, t, y = random(6, 5, seed=1), random(6, 5, seed=2), torch.arange(6) % 5
    component = LogitStandardisation(around=DKD(temperature=2.0, student="a", teacher="b"))
    assert (component.student_taps, component.teacher_taps) == (("a",), ("b",))
    got = component(Captured({"a": s, "logits": s}), Captured({"b": t, "logits": t}), Batch(None, y))
    expected = dkd(
        torch.from_numpy(oracle(s.numpy(), "code")), torch.from_numpy(oracle(t.numpy(), "code")), y, temperature=2.0
    )
    torch.testing.assert_close(got, expected)


def test_a_recipe_names_the_loss_to_wrap(random):
    batch = Batch(None, torch.arange(6) % 5)
    s, t = Captured({"logits": random(6, 5, seed=1)}), Captured({"logits": random(6, 5, seed=2)})
    described = LogitStandardisation(around={"name": "dkd", "temperature": 2.0, "beta": 2})
    assert isinstance(described.around, DKD)
    assert described(s, t, batch) == LogitStandardisation(around=DKD(2.0, beta=2.0))(s, t, batch)
    with pytest.raises(RecipeError, match=r"around \(dkd\): unknown option 'temprature'; did you mean 'temperature'"):
        LogitStandardisation(around={"name": "dkd", "temprature": 2.0})
    with pytest.raises(UnknownNameError, match="no knowledge named 'dkdd'; did you mean 'dkd'"):
        LogitStandardisation(around={"name": "dkdd"})
    with pytest.raises(ValueError, match=r"around: expected \{name: "):
        LogitStandardisation(around={"temperature": 2.0})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_equal_logits_become_zeros_without_gradient_rather_than_rounding_errors(dtype, value):
    z = torch.full((3, 7), value, dtype=dtype, requires_grad=True)
    standard = standardise(z)
    (standard**2 + standard).sum().backward()
    assert (standard == 0).all()
    assert (z.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_standardised_in_single(random, dtype):
    z = (random(4, 10) * 1e3).to(dtype)
    got = standardise(z)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), oracle(z.double().numpy(), "code"), rtol=1e-5, atol=1e-5)


def test_saturated_logits_at_a_gap_of_400_are_finite_with_a_finite_gradient():
    s = torch.tensor([[400.0, 0.0]], requires_grad=True)
    loss = LogitStandardisation()(Captured({"logits": s}), Captured({"logits": torch.tensor([[0.0, 400.0]])}), None)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(s.grad).all()


def test_gradients(random):
    for variant in VARIANTS:
        assert gradcheck(lambda z, v=variant: standardise(z, variant=v), (random(4, 5).requires_grad_(),))


@pytest.mark.parametrize("around", [None, DKD(temperature=2.0)], ids=["soft-targets", "dkd"])
def test_the_component_stands_what_all_do(random, check_component, around):
    batch = Batch(None, torch.arange(6) % 5)
    student, teacher = {"logits": random(6, 5, seed=1)}, {"logits": random(6, 5, seed=2)}
    check_component(LogitStandardisation(around=around), student, teacher, batch)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="its own temperature, class_dim, void, vocabulary and taps; give them to it"):
        LogitStandardisation(3.0, around=DKD())
    with pytest.raises(ValueError, match="expected knowledge of kind 'response', got SP"):
        LogitStandardisation(around=SP())
    with pytest.raises(ValueError, match="variant: there is no 'x'"):
        LogitStandardisation(variant="x")
