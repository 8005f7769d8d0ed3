"""OFA-KD against an oracle, its exits on every layout, and a transformer that teaches a CNN."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import kdx
from kdx.batch import Batch
from kdx.capture import Captured
from kdx.knowledge import OFA
from kdx.knowledge.ofa import ofa
from kdx.layout import Layout
from kdx.models import ConvNet, ViT


def softmax(z):
    exponent = np.exp(z - z.max())
    return exponent / exponent.sum()


def oracle(student, teacher, targets, gamma, temperature, variant):
    rows = []
    for s, t, y in zip(student.numpy(), teacher.numpy(), targets.tolist(), strict=True):
        if y < 0:
            continue
        q, p = softmax(s / temperature), softmax(t / temperature)
        value = 0.0
        for i in range(len(s)):
            if variant == "paper":
                value -= ((1 + p[i]) ** gamma if i == y else p[i]) * np.log(q[i])
            else:
                value -= ((1 + p[i]) ** gamma - 1 if i == y else p[i] ** gamma) * np.log(q[i])
        rows.append(value)
    return float(np.mean(rows))


@pytest.mark.parametrize("variant", ["code", "paper"])
@pytest.mark.parametrize(("gamma", "temperature"), [(1.0, 1.0), (1.4, 2.0), (3.0, 1.0)])
def test_it_has_the_value_of_the_oracle(random, gamma, temperature, variant):
    s, t, y = random(6, 4, seed=1, std=2), random(6, 4, seed=2, std=2), torch.tensor([0, 3, -100, 2, 1, -100])
    found = ofa(s, t, y, gamma=gamma, temperature=temperature, variant=variant).item()
    assert found == pytest.approx(oracle(s, t, y, gamma, temperature, variant), rel=1e-10)


def test_with_gamma_1_the_code_is_the_cross_entropy_with_the_teacher_and_the_paper_adds_that_with_the_label(random):
    s, t, y = random(5, 4, seed=1), random(5, 4, seed=2), torch.tensor([0, 1, 2, 3, 0])
    crossed = -(t.softmax(1) * s.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(ofa(s, t, y), crossed)
    torch.testing.assert_close(ofa(s, t, y, variant="paper"), crossed + nn.functional.cross_entropy(s, y))


def test_the_gradient_is_right_and_finite_and_rows_without_a_label_have_none(random):
    s, t = random(4, 3, seed=3).requires_grad_(), random(4, 3, seed=4).requires_grad_()
    y = torch.tensor([0, 2, -100, 1])
    for variant in ("code", "paper"):
        assert torch.autograd.gradcheck(lambda a, b, v=variant: ofa(a, b, y, gamma=1.5, variant=v), (s, t))
    ofa(s, t, y).backward()
    assert s.grad[2].abs().max() == 0
    far = torch.tensor([[0.0, 500.0, -torch.inf]], requires_grad=True)
    loss = ofa(far, torch.tensor([[500.0, 0.0, -torch.inf]]), torch.tensor([0]), gamma=2.0)
    loss.backward()
    assert loss.isfinite()
    assert far.grad.isfinite().all()
    assert ofa(far, far, torch.tensor([-100])) == 0


def test_the_loss_is_the_sum_over_the_exits_each_with_its_gamma(random):
    s = {"a": random(3, 4, 8, 8), "b": random(3, 6, 4, 4), "logits": random(3, 5)}
    t = Captured({"logits": random(3, 5, seed=1)})
    component = OFA(student=("a", "b", "logits"), gamma=[1.0, 1.5, 2.0])
    component.setup(Captured(s), t)
    batch = Batch(None, torch.tensor([0, 4, 2]))
    exits = component.exit_logits(Captured(s))
    assert exits[2] is s["logits"]
    expected = sum(
        oracle(z.detach(), t["logits"], batch.targets, gamma, 1.0, "code")
        for z, gamma in zip(exits, (1.0, 1.5, 2.0), strict=True)
    )
    assert component(Captured(s), t, batch).item() == pytest.approx(expected, rel=1e-10)


def test_an_exit_halves_the_map_once_for_each_deeper_tap_and_ends_in_the_width_of_the_deepest(random):
    s = {"a": random(3, 4, 8, 8), "b": random(3, 6, 4, 4), "c": random(3, 9, 2, 2)}
    component = OFA(student=("a", "b", "c"))
    component.setup(Captured(s), Captured({"logits": random(3, 5)}))
    for exit, layers, halvings in zip(component.exits, ([4, 8, 9], [6, 9], [9]), (2, 1, 0), strict=True):
        strides = [part.stride for part in exit if isinstance(part, nn.Conv2d) and part.stride != (1, 1)]
        assert strides == [(2, 2)] * halvings
        assert exit[-1].weight.shape == (5, 9)
        pointwise = [part.out_channels for part in exit if isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1)]
        assert pointwise[-1] == layers[-1]
        assert all(part.groups == part.in_channels for part in exit if getattr(part, "kernel_size", ()) == (3, 3))


def test_tokens_and_vectors_have_exits_too_and_unknown_tokens_are_refused(random):
    t = Captured({"logits": random(2, 5)})
    on_grid = Captured({"a": random(2, 5, 7)}, layouts={"a": Layout("nlc", grid=(2, 2), class_token=1)})
    component = OFA(student="a")
    component.setup(on_grid, t)
    assert isinstance(component.exits[0][0], nn.Conv2d)
    for captured, options in (
        (Captured({"a": random(2, 5, 7)}), {"class_token": 1}),
        (Captured({"a": random(2, 7)}), {}),
    ):
        component = OFA(student="a", **options)
        component.setup(captured, t)
        assert isinstance(component.exits[0][0], nn.Linear)
        assert component.exit_logits(captured)[0].shape == (2, 5)
    with pytest.raises(ValueError, match="give class_token=1"):
        OFA(student="a").setup(Captured({"a": random(2, 5, 7)}), t)


def test_what_does_not_fit_is_refused(random):
    s, t = Captured({"a": random(2, 3)}), Captured({"logits": random(2, 5)})
    with pytest.raises(ValueError, match="gamma must be >= 1"):
        OFA(student="a", gamma=0.5)
    with pytest.raises(ValueError, match="one for each of 1 taps, got 2"):
        OFA(student="a", gamma=[1.0, 2.0]).setup(s, t)
    with pytest.raises(ValueError, match=r"OFA compares exits with logits \[N, C\].*have shape \[2, 5, 4, 4\]"):
        OFA(student="a").setup(s, Captured({"logits": random(2, 5, 4, 4)}))
    with pytest.raises(ValueError, match=r"expected the student's shape \[2, 3\], got \[2, 5\]"):
        OFA(student="logits").setup(Captured({"logits": random(2, 3)}), t)
    component = OFA(student="a")
    component.setup(s, t)
    with pytest.raises(ValueError, match="OFA splits the classes at the label and needs integer labels"):
        component(s, t, Batch(None))


def test_a_transformer_teaches_a_cnn_and_no_exit_is_in_the_student():
    torch.manual_seed(0)
    student, teacher = ConvNet(4, stages=3, input_shape=(1, 8, 8)), ViT(input_shape=(1, 8, 8))
    with torch.no_grad():
        teacher.fc.weight.mul_(20)  # sure of something
    keys = set(student.state_dict())
    terms = {"ofa": OFA(student=("stage1", "stage2", "stage3", "logits"), gamma=1.2)}
    scheme = kdx.Offline(student, teacher, knowledge=terms)
    data = [kdx.Batch(torch.randn(16, 1, 8, 8), torch.randint(10, (16,)))]
    scheme.setup(data[0])
    before = scheme(data[0]).terms["ofa"].item()
    kdx.fit(scheme, data, epochs=8, device="cpu", optimizer={"name": "AdamW", "lr": 0.01})
    assert scheme(data[0]).terms["ofa"].item() < 0.9 * before
    assert set(student.state_dict()) == keys
    assert all(p.grad is None for p in teacher.parameters())


def test_ofa_passes_every_component_check(random, check_component):
    s = {"a": random(4, 3, 4, 4, seed=1), "b": random(4, 5, 2, 2, seed=2)}
    t = {"logits": random(4, 6, seed=3)}
    component = OFA(student=("a", "b"), gamma=1.5)
    component.setup(Captured(s), Captured(t))
    check_component(component.float(), s, t, Batch(None, torch.tensor([0, 5, -100, 2])))
