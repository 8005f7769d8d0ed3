"""CWD against an oracle that loops over samples and channels, and soft targets as pixel-wise distillation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import kdx
from kdx.batch import Batch
from kdx.capture import Captured
from kdx.knowledge import CWD
from kdx.knowledge.cwd import cwd
from kdx.layout import Layout


def softmax(x):
    exponent = np.exp(x - x.max())
    return exponent / exponent.sum()


def oracle(student, teacher, temperature, mask=None):
    s, t = (np.asarray(x, np.float64) for x in (student, teacher))
    total = 0.0
    for n in range(s.shape[0]):
        seen = np.ones(s.shape[2:], bool) if mask is None else np.asarray(mask[n])
        for c in range(s.shape[1]):
            if seen.any():
                q, p = (softmax(x[n, c][seen] / temperature) for x in (s, t))
                total += (p * np.log(p / q)).sum()
    return temperature**2 * total / (s.shape[0] * s.shape[1])


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1, 2), (3, 4, 6), (2, 2, 2, 3, 2)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_cwd_has_the_value_of_the_oracle(random, shape, temperature):
    s, t = random(*shape, seed=1, std=3), random(*shape, seed=2, std=3)
    assert cwd(s, t, temperature=temperature).item() == pytest.approx(oracle(s, t, temperature), rel=1e-10)


def test_void_places_are_in_no_softmax_and_a_sample_of_nothing_else_adds_0(random):
    s, t = random(3, 4, 5, 2, seed=1, std=3).requires_grad_(), random(3, 4, 5, 2, seed=2, std=3)
    mask = torch.rand(3, 5, 2, generator=torch.Generator().manual_seed(0)) > 0.4
    mask[1] = False
    loss = cwd(s, t, mask=mask)
    assert loss.item() == pytest.approx(oracle(s.detach(), t, 4.0, mask), rel=1e-10)
    loss.backward()
    assert torch.isfinite(s.grad).all()
    assert s.grad.masked_select(~mask[:, None]).abs().max() == 0
    assert s.grad.masked_select(mask[:, None]).abs().min() > 0


def test_cwd_gradient_is_right_in_float64(random):
    s, t = random(2, 3, 2, 2, seed=3).requires_grad_(), random(2, 3, 2, 2, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(cwd, (s, t))


def test_a_number_added_to_a_channel_changes_nothing_and_the_softmax_is_not_over_the_channels(random):
    s, t = random(2, 3, 4, 4, seed=5), random(2, 3, 4, 4, seed=6)
    moved = cwd(s + random(2, 3, 1, 1, seed=7), t + random(2, 3, 1, 1, seed=8))
    torch.testing.assert_close(moved, cwd(s, t), rtol=1e-10, atol=0)
    by_pixel = s + random(2, 1, 4, 4, seed=9)  # the same probabilities of classes
    assert not torch.allclose(cwd(by_pixel, t), cwd(s, t))
    pixels = kdx.SoftTargets()
    torch.testing.assert_close(
        pixels(Captured({"logits": by_pixel}), Captured({"logits": t}), None),
        pixels(Captured({"logits": s}), Captured({"logits": t}), None),
    )


def test_cwd_passes_every_component_check(random, check_component):
    s, t = {"a": random(3, 4, 4, 4, seed=1)}, {"a": random(3, 6, 2, 2, seed=2)}
    component = CWD(student="a", teacher="a")
    component.setup(Captured(s), Captured(t))
    check_component(component.float(), s, t)


def test_a_wider_teacher_gets_a_convolution_and_equal_widths_none(random):
    s, t = {"a": random(2, 3, 4, 4), "b": random(2, 5, 4, 4)}, {"a": random(2, 6, 2, 2), "b": random(2, 5, 2, 2)}
    component = CWD(student=("a", "b"), teacher=("a", "b"))
    component.setup(Captured(s), Captured(t))
    first, second = component.adapters
    assert first.weight.shape == (6, 3, 1, 1)
    assert isinstance(second, nn.Identity)
    pooled = {name: x.reshape(2, -1, 2, 2, 2, 2).mean((3, 5)) for name, x in s.items()}
    adapted = torch.einsum("oc,nchw->nohw", first.weight[:, :, 0, 0].detach(), pooled["a"])
    expected = oracle(adapted, t["a"], 4.0) + oracle(pooled["b"], t["b"], 4.0)
    assert component(Captured(s), Captured(t), None).item() == pytest.approx(expected, rel=1e-10)


def loss_of(task, student, teacher, targets, **options):
    component = CWD(**options)
    component.bind(task.responses)
    s, t = Captured({"logits": student}), Captured({"logits": teacher})
    component.setup(s, t)
    return component(s, t, Batch(None, targets)).item()


def test_the_task_says_which_axis_holds_the_classes_and_what_is_void(random):
    s, t = random(2, 3, 4, 5, seed=1), random(2, 3, 4, 5, seed=2)
    targets = torch.randint(3, (2, 4, 5), generator=torch.Generator().manual_seed(0))
    targets[0, 1:] = -100
    scenes = kdx.make("task", "segmentation")
    assert loss_of(scenes, s, t, targets) == pytest.approx(oracle(s, t, 4.0, targets != -100), rel=1e-10)
    assert loss_of(scenes, s, t, targets, void=False) == pytest.approx(oracle(s, t, 4.0), rel=1e-10)
    last = kdx.make("task", "classification", class_dim=-1)
    found = loss_of(last, s.movedim(1, -1), t.movedim(1, -1), targets.clamp(min=0))
    assert found == pytest.approx(oracle(s, t, 4.0), rel=1e-10)
    rows = loss_of(scenes, s.flatten(2), t.flatten(2), targets.flatten(1))  # [N, C, L]
    assert rows == pytest.approx(oracle(s, t, 4.0, targets != -100), rel=1e-10)


def test_features_without_places_and_targets_of_another_resolution_are_refused(random):
    vector = Captured({"logits": random(4, 3)})
    with pytest.raises(ValueError, match=r"CWD .* has shape \[4, 3\] .* take 'soft-targets' for logits \[N, C\]"):
        CWD().setup(vector, vector)
    with pytest.raises(ValueError, match=r"needs places, \[N, C, H, W\], got shape \[4, 3, 1, 1\]"):
        cwd(random(4, 3, 1, 1), random(4, 3, 1, 1))
    small = random(2, 3, 2, 2)
    with pytest.raises(ValueError, match=r"the targets have shape \[2, 4, 4\]"):
        loss_of(kdx.make("task", "segmentation"), small, small, torch.zeros(2, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"mask: expected \[2, 2, 2\].*got \[2, 4, 4\]"):
        cwd(small, small, mask=torch.ones(2, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        CWD(temperature=0)


def test_tokens_before_the_grid_are_no_places(random):
    tokens, images = random(2, 7, 3, seed=1), random(2, 3, 2, 3, seed=2)
    s = Captured({"a": tokens}, layouts={"a": Layout("nlc", grid=(2, 3), class_token=1)})
    component = CWD(student="a", teacher="b")
    component.setup(s, t := Captured({"b": images}))
    expected = oracle(tokens[:, 1:].mT.reshape(2, 3, 2, 3), images, 4.0)
    assert component(s, t, None).item() == pytest.approx(expected, rel=1e-10)


def test_soft_targets_of_dense_outputs_are_pixel_wise_distillation(random):
    n, c, h, w = 2, 3, 4, 5
    s, t = random(n, c, h, w, seed=1, std=2), random(n, c, h, w, seed=2, std=2)
    total = 0.0  # 1 / (W H) sum_i KL(q^t_i || q^s_i), of one image as the paper has it
    for image in range(n):
        for y in range(h):
            for x in range(w):
                q, p = (softmax(np.asarray(z[image, :, y, x])) for z in (s, t))
                total += (p * np.log(p / q)).sum() / (w * h)
    loss = kdx.SoftTargets(temperature=1.0)(Captured({"logits": s}), Captured({"logits": t}), None)
    assert loss.item() == pytest.approx(total / n, rel=1e-10)


def test_a_scheme_of_the_task_segmentation_trains_by_it():
    def net(width):
        return nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 3, 1))

    torch.manual_seed(0)
    images, targets = torch.randn(4, 1, 6, 6), torch.randint(3, (4, 6, 6))
    targets[:, 0] = -100
    scheme = kdx.Offline(
        net(4),
        net(8),
        task=kdx.make("task", "segmentation"),
        knowledge={"classes": (3.0, CWD()), "layer": (50.0, CWD(student="1", teacher="1"))},
    )
    run = kdx.fit(scheme, [Batch(images, targets)], epochs=2, evaluate=[Batch(images, targets)])
    assert run.step == 2
    losses = scheme(Batch(images, targets))
    assert losses.terms["classes"] > 0
    assert losses.terms["layer"] > 0
