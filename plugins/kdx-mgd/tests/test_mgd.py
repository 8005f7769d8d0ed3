"""Masked generative distillation against float64 NumPy, its mask, its parts, and the conformance kit."""

import numpy as np
import pytest
import torch
from kdx_mgd.mgd import MGD, mask

from kdx import Batch, Captured
from kdx.testing import KnowledgeTags, parametrize_checks

SHAPES = {"student_shapes": {"conv": (3, 4, 4)}, "teacher_shapes": {"conv": (5, 4, 4)}}


@parametrize_checks(MGD(student="conv", teacher="conv", ratio=0.0), tags=KnowledgeTags(**SHAPES))
def test_conformance(check) -> None:
    check()


def convolve(x, weight, bias):
    """A 3x3 convolution with padding 1, written out."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows, columns = x.shape[2:]
    out = np.zeros((len(x), len(weight), rows, columns))
    for i in range(3):
        for j in range(3):
            out += np.einsum("ncij,oc->noij", padded[:, :, i : i + rows, j : j + columns], weight[:, :, i, j])
    return out + bias[:, None, None]


def test_the_value_is_that_of_the_formula() -> None:
    torch.manual_seed(0)
    s, t = torch.randn(3, 2, 4, 4, dtype=torch.float64), torch.randn(3, 5, 4, 4, dtype=torch.float64)
    component = MGD(student="conv", teacher="conv", ratio=0.0)
    captured = Captured({"conv": s}), Captured({"conv": t})
    component.setup(*captured)
    first, _, second = component.generators[0]
    align, *rest = (
        p.detach().numpy() for p in (component.adapters[0].weight, *first.parameters(), *second.parameters())
    )
    drawn = convolve(
        np.maximum(convolve(np.einsum("nchw,oc->nohw", s.numpy(), align[:, :, 0, 0]), *rest[:2]), 0), *rest[2:]
    )
    expected = ((drawn - t.numpy()) ** 2).sum() / 3
    np.testing.assert_allclose(component(*captured, Batch(None)).item(), expected, rtol=1e-12)


@pytest.mark.parametrize(("unit", "shape"), [("channels", (64, 32, 1, 1)), ("pixels", (64, 1, 6, 6))])
def test_whole_units_are_hidden_with_the_given_probability(unit, shape) -> None:
    torch.manual_seed(0)
    kept = mask(torch.ones(64, 32, 6, 6), 0.15, unit)
    one = kept[:, :, :1, :1] if unit == "channels" else kept[:, :1]
    assert one.shape == shape
    assert torch.equal(kept, one.expand_as(kept))
    draws = one.numel()
    assert abs(one.mean().item() - 0.85) < 4 * (0.15 * 0.85 / draws) ** 0.5


def test_hidden_units_get_no_gradient() -> None:
    feature = torch.ones(2, 3, 4, 4, requires_grad=True)
    mask(feature, 1.0, "pixels").sum().backward()
    assert feature.grad.abs().sum() == 0


def test_tokens_are_laid_on_their_grid() -> None:
    s, t = Captured({"block": torch.randn(2, 17, 6)}), Captured({"conv": torch.randn(2, 5, 4, 4)})
    with pytest.raises(ValueError, match=r"MGD: the student's feature at 'block' has shape .* give grid="):
        MGD(student="block", teacher="conv").setup(s, t)
    component = MGD(student="block", teacher="conv", grid=(4, 4), class_token=1)
    component.setup(s, t)
    assert torch.isfinite(component(s, t, Batch(None)))


@pytest.mark.parametrize(
    ("options", "message"), [({"ratio": 1.5}, r"ratio .* got 1.5"), ({"unit": "rows"}, r"unit .* got 'rows'")]
)
def test_bad_options_are_named(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        MGD(student="conv", teacher="conv", **options)
