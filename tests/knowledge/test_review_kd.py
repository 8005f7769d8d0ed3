"""ReviewKD: the loss against an oracle, the fusion against its formula written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdx.capture import Captured
from kdx.knowledge.review_kd import ReviewKD, hcl


def oracle(student, teacher):
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    side = student.shape[2]

    def pooled(x, k):
        n, c, h, _ = x.shape
        return x.reshape(n, c, k, h // k, k, h // k).mean((3, 5))

    loss, weights = ((student - teacher) ** 2).mean(), [1.0]
    for k in (4, 2, 1):
        if k < side:
            weights.append(weights[-1] / 2)
            loss += weights[-1] * ((pooled(student, k) - pooled(teacher, k)) ** 2).mean()
    return loss / sum(weights)


@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_hcl_has_the_value_of_the_oracle(random, side):
    s, t = random(3, 4, side, side, seed=1), random(3, 4, side, side, seed=2)
    assert hcl(s, t).item() == pytest.approx(oracle(s, t), rel=1e-12)
    assert hcl(t, t) == 0


def test_hcl_gradient_is_right_in_float64(random):
    s, t = random(2, 2, 4, 4, seed=1).requires_grad_(), random(2, 2, 4, 4, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(hcl, (s, t))


@pytest.fixture
def component(random):
    component = ReviewKD(student=("a", "b", "c"), teacher=("a", "b", "c"))
    s = {"a": random(3, 4, 8, 8, seed=1), "b": random(3, 5, 4, 4, seed=2), "c": random(3, 6, seed=3)}
    t = {"a": random(3, 7, 8, 8, seed=4), "b": random(3, 8, 2, 2, seed=5), "c": random(3, 9, seed=6)}
    torch.manual_seed(0)
    component.setup(Captured(s), Captured(t))
    return component.double(), s, t


def test_review_kd_passes_every_component_check(component, check_component):
    check_component(*component)


def test_review_kd_fuses_from_deep_to_shallow_as_the_formula_says(component):
    review, s, t = component
    review.eval()  # BatchNorm as it starts divides by sqrt(1 + eps)
    scale = 1 / math.sqrt(1 + 1e-5)

    def conv(module, x):
        kernel = module.weight.detach().numpy()
        k = kernel.shape[2]
        padded = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
        out = np.zeros((len(x), len(kernel), *x.shape[2:]))
        for i in range(k):
            for j in range(k):
                window = padded[:, :, i : i + x.shape[2], j : j + x.shape[3]]
                out += np.einsum("oc,nchw->nohw", kernel[:, :, i, j], window)
        return out if module.bias is None else out + module.bias.detach().numpy()[:, None, None]

    def nearest(x, side):
        index = np.arange(side) * x.shape[2] // side
        return x[:, :, index][:, :, :, index]

    below, losses = None, []
    for name, level in reversed(list(zip("abc", review.levels, strict=True))):
        x, y = s[name].numpy().reshape(3, -1, *s[name].shape[2:] or (1, 1)), t[name].numpy()
        y = y.reshape(*y.shape, *[1] * (4 - y.ndim))
        x = conv(level.enter[0], x) * scale
        if below is not None:
            below = nearest(below, x.shape[2])
            gate = 1 / (1 + np.exp(-conv(level.attend, np.concatenate([x, below], 1))))
            x = x * gate[:, :1] + below * gate[:, 1:]
        below = nearest(x, y.shape[2])
        losses.append(oracle(conv(level.leave[0], below) * scale, y))
    assert review(Captured(s), Captured(t), None).item() == pytest.approx(sum(losses), rel=1e-9)
    assert review.levels[2].attend is None
    assert all(level.enter[0].weight.shape[0] == 6 for level in review.levels)


def test_review_kd_deep_features_learn_from_shallow_teacher_layers(component):
    review, s, t = component
    deep = s["c"].clone().requires_grad_()
    fused = review.fuse(*review._maps(Captured(s | {"c": deep}), Captured(t)))
    fused[0].sum().backward()
    assert deep.grad.abs().max() > 0


def test_review_kd_survives_a_last_batch_of_one_sample(component):
    review, s, t = component
    one = [Captured({k: v[:1] for k, v in side.items()}) for side in (s, t)]
    assert math.isfinite(review.train()(*one, None).item())


def test_review_kd_needs_as_many_layers_on_both_sides(random):
    with pytest.raises(ValueError, match="2 student and 1 teacher layers"):
        ReviewKD(student=("a", "b"), teacher="a").setup(
            Captured({"a": random(1, 2, 2, 2), "b": random(1, 2, 2, 2)}), Captured({"a": random(1, 2, 2, 2)})
        )
