"""SAD: deeper attention maps teach shallower ones, from a chosen step on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import kdx
from kdx.models import ConvNet, ViT
from kdx.schemes.sad import SAD, attention_map_distance


@pytest.fixture
def batch() -> kdx.Batch:
    generator = torch.Generator().manual_seed(3)
    return kdx.Batch(torch.randn(6, 1, 16, 16, generator=generator).double(), torch.arange(6) % 10)


def make(batch, **options) -> SAD:
    student = ConvNet(width=4, stages=3, input_shape=(1, 16, 16)).double()
    scheme = SAD(student, stages=("stage1", "stage2", "stage3"), **options)
    scheme.setup(batch)
    return scheme


def attention(feature, size=None):
    """exp(a) / sum exp(a) of a = sum_c F^2, pixel by pixel."""
    summed = feature.pow(2).sum(1)
    if size is not None and summed.shape[1:] != size:
        summed = F.interpolate(summed[:, None], size=size, mode="bilinear")[:, 0]
    weights = (summed - summed.amax((1, 2), keepdim=True)).exp()
    return weights / weights.sum((1, 2), keepdim=True)


def test_the_loss_is_the_squared_difference_of_neighbouring_attention_maps(batch) -> None:
    scheme = make(batch, start=0.0, weight=0.3).eval()
    losses = scheme(batch)
    net = scheme.student
    one = net.stage1(batch.inputs)
    two = net.stage2(one)
    three = net.stage3(two)
    first = (attention(one) - attention(two, (8, 8))).pow(2).mean()
    second = (attention(two) - attention(three, (4, 4))).pow(2).mean()
    expected = {"task": F.cross_entropy(net.fc(net.avgpool(three)), batch.targets), "sad": 0.3 * (first + second)}
    assert losses.terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses.terms[name], value, rtol=1e-10, atol=1e-14)


def test_the_distance_ignores_the_order_of_channels_and_has_a_right_gradient() -> None:
    student = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 5, 2, 2, dtype=torch.float64)
    assert attention_map_distance(student, -student.flip(1)).item() < 1e-30
    torch.testing.assert_close(
        attention_map_distance(student, teacher.flip(1)), attention_map_distance(student, teacher)
    )
    torch.autograd.gradcheck(lambda s: attention_map_distance(s, teacher), student)
    huge = attention_map_distance(100 * student, 100 * teacher)
    assert huge.isfinite()


def test_no_gradient_reaches_the_deeper_stage_that_teaches(batch) -> None:
    scheme = make(batch, start=0.0)
    loss = scheme(batch).terms["sad"]
    last = list(scheme.student.stage3.parameters())
    assert all(g is None for g in torch.autograd.grad(loss, last, retain_graph=True, allow_unused=True))
    assert torch.autograd.grad(loss, scheme.student.stage2.conv1.weight)[0].abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0, 0, 0, 0, 1, 1]),
        ({"start": 0.3}, [0, 0, 1, 1, 1, 1]),
        ({"start": 0.0}, [1] * 6),
        ({"start": 1.0}, [0] * 6),
    ],
)
def test_the_term_counts_from_the_chosen_share_of_the_steps_on(batch, options, expected) -> None:
    scheme = make(batch, **options).eval()
    seen = []
    for step in range(6):
        scheme.advance(step, 6)
        seen.append(int(scheme(batch).terms["sad"].item() > 0))
    assert seen == expected


def test_tokens_are_laid_on_their_grid_and_other_knowledge_can_take_the_place() -> None:
    at = kdx.make("knowledge", "attention-transfer", student="feature", teacher="feature")
    batch = kdx.Batch(torch.randn(4, 1, 16, 16), torch.arange(4))
    for options in ({}, {"knowledge": {"at": (10.0, at)}}):
        scheme = SAD(ViT(dim=8, depth=3, heads=2, input_shape=(1, 16, 16)), start=0.0, **options)
        scheme.setup(batch)
        terms = scheme(batch).terms
        assert list(terms) == ["task", "at" if options else "sad"]
        assert terms[list(terms)[1]].item() > 0
    with pytest.raises(ValueError, match="knowledge 'kd' taps 'logits'"):
        SAD(ConvNet(), knowledge={"kd": kdx.SoftTargets()})
    with pytest.raises(ValueError, match="start must be >= 0 and <= 1, got 2; it is a share"):
        SAD(ConvNet(), start=2)
