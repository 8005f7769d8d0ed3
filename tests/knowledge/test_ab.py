"""AB against an oracle that loops over neurons, and what the margin and the sign of the teacher alone decide."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdx.capture import Captured
from kdx.knowledge import AB
from kdx.knowledge.ab import activation_boundaries


def oracle(student, teacher, margin=1.0):
    """As the authors write it: two cases, each with its own condition."""
    total = 0.0
    for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        if t > 0 and s <= margin:
            total += (s - margin) ** 2
        elif t <= 0 and s > -margin:
            total += (s + margin) ** 2
    return total / len(student)


@pytest.mark.parametrize("shape", [(3, 4, 3, 2), (1, 1), (2, 5, 7), (2, 2, 2, 3, 2)])
@pytest.mark.parametrize("margin", [1.0, 0.25])
def test_it_has_the_value_of_the_oracle(random, shape, margin):
    s, t = random(*shape, seed=1, std=2), random(*shape, seed=2)
    assert activation_boundaries(s, t, margin=margin).item() == pytest.approx(oracle(s, t, margin), rel=1e-12)


def test_a_teacher_of_exactly_0_is_not_active():
    s = torch.tensor([[0.5]], dtype=torch.float64)
    assert activation_boundaries(s, torch.zeros(1, 1)).item() == 2.25


def test_the_gradient_is_right_and_none_reaches_the_teacher_or_a_neuron_beyond_the_margin(random):
    s, t = random(3, 4, 2, 2, seed=3, std=2).requires_grad_(), random(3, 4, 2, 2, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: activation_boundaries(x, t.detach()), (s,))
    activation_boundaries(s, t).backward()
    assert t.grad is None
    safe = s.detach() * t.detach().sign() >= 1
    assert s.grad[safe].abs().max() == 0
    assert s.grad[~safe].abs().min() > 0


def test_only_the_sides_of_the_teacher_count(random):
    s, t = random(4, 6, seed=5), random(4, 6, seed=6)
    torch.testing.assert_close(activation_boundaries(s, 1000 * t), activation_boundaries(s, t), rtol=0, atol=0)
    assert activation_boundaries(s, -t) != activation_boundaries(s, t)
    assert activation_boundaries(2 * t.sign(), t) == 0
    assert activation_boundaries(torch.zeros(0, 3), torch.zeros(0, 3)) == 0


def test_shallow_layers_weigh_half_of_the_next_and_a_wider_teacher_gets_a_connector(random):
    s = {"a": random(4, 3, 4, 4), "b": random(4, 5, 4, 4)}
    t = {"a": random(4, 6, 2, 2, seed=1), "b": random(4, 5, 2, 2, seed=1)}
    component = AB(student=("a", "b"), teacher=("a", "b"))
    component.setup(Captured(s), Captured(t))
    first, second = component.connectors
    assert isinstance(second, nn.Identity)
    pooled = {name: x.reshape(4, -1, 2, 2, 2, 2).mean((3, 5)) for name, x in s.items()}
    mapped = torch.einsum("oc,nchw->nohw", first[0].weight[:, :, 0, 0].detach(), pooled["a"])
    mean, var = mapped.mean((0, 2, 3), keepdim=True), mapped.var((0, 2, 3), keepdim=True, unbiased=False)
    normed = (mapped - mean) / (var + 1e-5).sqrt()
    expected = oracle(normed, t["a"]) / 2 + oracle(pooled["b"], t["b"])
    assert component(Captured(s), Captured(t), None).item() == pytest.approx(expected, rel=1e-10)


def test_a_layer_after_the_relu_is_refused_and_so_is_a_margin_of_0(random):
    s, t = Captured({"a": random(2, 3)}), Captured({"a": random(2, 3).abs()})
    with pytest.raises(ValueError, match=r"none of AB: the teacher's feature at 'a' is.*tap what enters the ReLU"):
        AB(student="a", teacher="a").setup(s, t)
    with pytest.raises(ValueError, match="margin must be > 0"):
        AB(student="a", teacher="a", margin=0)


def test_ab_passes_every_component_check(random, check_component):
    s, t = {"a": random(5, 4, 4, 4, seed=1)}, {"a": random(5, 6, 2, 2, seed=2)}
    component = AB(student="a", teacher="a")
    component.setup(Captured(s), Captured(t))
    check_component(component.float(), s, t)


def test_training_by_it_makes_the_student_active_where_the_teacher_is(random):
    torch.manual_seed(0)
    x = random(64, 8, seed=1).float()
    teacher, student = nn.Linear(8, 6), nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 6))
    component = AB(student="a", teacher="a")
    t = Captured({"a": teacher(x).detach()})
    component.setup(Captured({"a": student(x)}), t)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    before = ((student(x) > 0) == (t["a"] > 0)).float().mean()
    for _ in range(60):
        optimizer.zero_grad()
        component(Captured({"a": student(x)}), t, None).backward()
        optimizer.step()
    after = ((student(x) > 0) == (t["a"] > 0)).float().mean()
    assert before < 0.8
    assert after > 0.95
