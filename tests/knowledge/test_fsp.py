"""FSP against numpy: flows between layers, pooling, adapters that learn."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from kdx.capture import Captured
from kdx.features import Feature
from kdx.knowledge.fsp import FSP, flow, fsp
from kdx.layout import Layout

VARIANTS = ["code", "paper"]


def pooled(x, size, variant):
    """By loops; sizes divide here."""
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, size[0], h // size[0], size[1], w // size[1])
    return blocks.max(axis=(3, 5)) if variant == "paper" else blocks.mean(axis=(3, 5))


def flow_oracle(a, b, variant):
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    a, b = pooled(a, size, variant), pooled(b, size, variant)
    result = np.zeros((a.shape[0], a.shape[1], b.shape[1]))
    for i in range(size[0]):
        for j in range(size[1]):
            result += a[:, :, None, i, j] * b[:, None, :, i, j]
    return result / (size[0] * size[1])


def oracle(students, teachers, variant):
    total = 0.0
    for i in range(len(students) - 1):
        gap = flow_oracle(students[i], students[i + 1], variant) - flow_oracle(teachers[i], teachers[i + 1], variant)
        total += (gap**2).sum(axis=(1, 2)).mean() if variant == "paper" else (gap**2).mean()
    return float(total)


@pytest.fixture
def layers(random):
    s = [random(3, 4, 8, 8, seed=1), random(3, 5, 4, 4, seed=2), random(3, 6, 4, 2, seed=3)]
    t = [random(3, 4, 4, 4, seed=4), random(3, 5, 4, 4, seed=5), random(3, 6, 2, 2, seed=6)]
    return s, t


@pytest.mark.parametrize("variant", VARIANTS)
def test_flows_and_loss(layers, variant):
    s, t = layers
    np.testing.assert_allclose(
        flow(s[0], s[1], variant=variant).numpy(), flow_oracle(s[0].numpy(), s[1].numpy(), variant), rtol=1e-12
    )
    expected = oracle([x.numpy() for x in s], [x.numpy() for x in t], variant)
    assert fsp(s, t, variant=variant).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_vectors_and_logits_are_maps_of_one_pixel(random, variant):
    """Also on responses: how the pooled feature goes with the logits."""
    s, t = [random(3, 4, seed=1), random(3, 7, seed=2)], [random(3, 4, seed=3), random(3, 7, seed=4)]
    expected = oracle([x.numpy()[:, :, None, None] for x in s], [x.numpy()[:, :, None, None] for x in t], variant)
    assert fsp(s, t, variant=variant).item() == pytest.approx(expected, rel=1e-12)


def test_tokens_are_a_grid(random):
    tokens, image = random(2, 16, 5), random(2, 3, 4, 4, seed=1)
    grid = tokens.transpose(1, 2).reshape(2, 5, 4, 4)
    torch.testing.assert_close(flow(Feature(tokens, Layout("nlc", (4, 4))), image), flow(grid, image))
    with pytest.raises(ValueError, match=r"16 tokens have to be laid on a map.*give grid="):
        flow(tokens, image)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients(random, variant):
    s = [random(2, 2, 4, 4, seed=1).requires_grad_(), random(2, 3, 2, 2, seed=2).requires_grad_()]
    t = [random(2, 2, 2, 2, seed=3), random(2, 3, 4, 4, seed=4)]
    assert gradcheck(lambda a, b: fsp([a, b], t, variant=variant), s)


def test_equal_layers_give_zero_and_pixels_in_another_order_too(random):
    s = [random(2, 2, 4, 4, seed=1), random(2, 3, 4, 4, seed=2)]
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    moved = [x.flatten(2)[:, :, order].reshape(x.shape) for x in s]
    assert fsp(s, s) == 0
    assert fsp(moved, s).item() == pytest.approx(0, abs=1e-28)


def test_an_empty_batch_and_zero_maps_give_zero():
    empty, zeros = (
        [torch.zeros(0, 2, 4, 4), torch.zeros(0, 3, 4, 4)],
        [torch.zeros(2, 2, 4, 4), torch.zeros(2, 3, 4, 4)],
    )
    for variant in VARIANTS:
        assert fsp(empty, empty, variant=variant) == 0
        assert fsp(zeros, zeros, variant=variant) == 0


def captured(layers):
    s, t = layers
    return {"a": s[0], "b": s[1], "c": s[2]}, {"x": t[0], "y": t[1], "z": t[2]}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_component_stands_what_all_do(layers, check_component, variant):
    s, t = captured(layers)
    component = FSP(student=("a", "b", "c"), teacher=("x", "y", "z"), variant=variant)
    component.setup(Captured(s), Captured(t))
    assert not list(component.parameters()), "equal channels need no adapter"
    check_component(component, s, t)


def test_adapters_are_learned_where_channels_differ(random, check_component):
    s = {"a": random(4, 3, 4, 4, seed=1), "b": random(4, 5, seed=2)}
    t = {"a": random(4, 6, 4, 4, seed=3), "b": random(4, 5, seed=4)}
    component = FSP(student=("a", "b"), teacher=("a", "b"))
    assert not component.ready
    with pytest.raises(RuntimeError, match=r"call scheme\.setup"):
        component(Captured(s), Captured(t), None)
    torch.manual_seed(0)
    component.setup(Captured(s), Captured(t))
    assert component.ready
    assert [tuple(p.shape) for p in component.parameters()] == [(6, 3, 1, 1)]
    check_component(component, s, t)

    component.double()
    optimizer = torch.optim.SGD(component.parameters(), lr=1.0)
    losses = []
    for _ in range(30):
        loss = component(Captured(s), Captured(t), None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_resuming_goes_on_exactly(random):
    s = {"a": random(4, 3, 4, 4, seed=1), "b": random(4, 5, seed=2)}
    t = {"a": random(4, 6, 4, 4, seed=3), "b": random(4, 5, seed=4)}

    def fresh():
        component = FSP(student=("a", "b"), teacher=("a", "b"))
        component.setup(Captured(s), Captured(t))
        return component, torch.optim.SGD(component.parameters(), lr=0.05, momentum=0.9)

    def steps(component, optimizer, n):
        for _ in range(n):
            optimizer.zero_grad()
            component(Captured(s), Captured(t), None).backward()
            optimizer.step()

    straight, optimizer = fresh()
    steps(straight, optimizer, 2)
    saved = {k: v.clone() for k, v in straight.state_dict().items()}, optimizer.state_dict()
    resumed, resumed_optimizer = fresh()
    resumed.load_state_dict(saved[0])
    resumed_optimizer.load_state_dict(copy.deepcopy(saved[1]))
    steps(straight, optimizer, 3)
    steps(resumed, resumed_optimizer, 3)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_errors_say_what_to_do(random):
    a, b = random(2, 3, 4, 4), random(2, 5, 4, 4)
    with pytest.raises(ValueError, match="2 or more, got 1 and 1"):
        fsp([a], [a])
    with pytest.raises(ValueError, match=r"channels of the teacher's \[2, 5, 4, 4\], got \[2, 3, 4, 4\]"):
        fsp([a, a], [b, a])
    with pytest.raises(ValueError, match=r"are 2 layers, teacher taps \('a',\) are 1"):
        FSP(student=("a", "b"), teacher="a").setup(Captured({"a": a, "b": b}), Captured({"a": a}))
