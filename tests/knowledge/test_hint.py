"""Hints against an oracle, and the adapters they own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import kdx
from kdx.capture import Captured
from kdx.knowledge.hint import Hint, hint


def oracle(student, teacher, weight, variant):
    """1x1 convolution of the pooled student map, then the squared error; float64."""
    n, _, h, w = student.shape
    k = h // teacher.shape[2]
    pooled = student.reshape(n, -1, h // k, k, w // k, k).mean((3, 5))
    adapted = np.einsum("oc,nchw->nohw", weight, pooled)
    square = (adapted - teacher) ** 2
    return square.mean() if variant == "code" else 0.5 * square.reshape(n, -1).sum(1).mean()


@pytest.fixture
def features(random):
    return {"a": random(3, 4, 8, 8, seed=1)}, {"b": random(3, 6, 4, 4, seed=2)}


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_hint_has_the_value_of_the_oracle_and_passes_every_component_check(features, check_component, variant):
    s, t = features
    component = Hint(student="a", teacher="b", variant=variant)
    component.setup(Captured(s), Captured(t))
    expected = oracle(
        s["a"].numpy(), t["b"].numpy(), component.adapters[0].weight.detach()[:, :, 0, 0].numpy(), variant
    )
    assert component(Captured(s), Captured(t), None).item() == pytest.approx(expected, rel=1e-10)
    check_component(component, s, t)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_hint_gradient_is_right_in_float64_for_the_feature_and_the_adapter(random, variant):
    component = Hint(student="a", teacher="b", variant=variant)
    s, t = random(2, 3, 2, 2, seed=3), random(2, 2, 2, 2, seed=4)
    component.setup(Captured({"a": s}), Captured({"b": t}))

    def loss(feature, weight):
        values = torch.func.functional_call(
            component, {"adapters.0.weight": weight}, (Captured({"a": feature}), Captured({"b": t}), None)
        )
        return values

    assert torch.autograd.gradcheck(loss, (s.requires_grad_(), component.adapters[0].weight.detach().requires_grad_()))


def test_hint_paper_variant_does_not_depend_on_the_batch_size_and_code_not_on_the_map_size():
    one, four = torch.ones(1, 2, 2, 2), torch.ones(4, 2, 2, 2)
    assert hint(one, 0 * one, variant="paper") == hint(four, 0 * four, variant="paper") == 4
    assert hint(one, 0 * one) == hint(torch.ones(1, 2, 5, 5), torch.zeros(1, 2, 5, 5)) == 1


def test_hint_adapters_are_trained_saved_and_absent_from_the_exported_student(tmp_path):
    torch.manual_seed(0)

    def net(width):
        return nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)
        )

    student, teacher = net(2), net(5)
    data = [(torch.randn(8, 1, 4, 4), torch.randint(3, (8,))) for _ in range(4)]
    scheme = kdx.Offline(student, teacher, knowledge={"hint": (1.0, Hint(student="0", teacher="0"))})
    scheme.setup(data[0])
    before = scheme.knowledge["hint"].adapters[0].weight.detach().clone()
    kdx.fit(scheme, data, epochs=2, device="cpu", folder=tmp_path, optimizer={"name": "SGD", "lr": 0.05})
    assert not torch.equal(before, scheme.knowledge["hint"].adapters[0].weight)
    saved = [torch.load(path, weights_only=True) for path in (tmp_path / "checkpoints").iterdir()]
    assert all(any("adapters.0.weight" in key for key in str(state).split("'")) for state in saved)
    from safetensors.torch import load_file

    exported = load_file(next(tmp_path.glob("*.safetensors")))
    assert set(exported) == set(student.state_dict())
    assert all(torch.equal(exported[name], value) for name, value in student.state_dict().items())


def test_hint_without_setup_says_what_to_call(features):
    s, t = features
    with pytest.raises(RuntimeError, match=r"scheme\.setup\(batch\)"):
        Hint(student="a", teacher="b")(Captured(s), Captured(t), None)


def test_hint_rejects_an_unknown_variant_and_attention_pairing():
    with pytest.raises(ValueError, match="variant"):
        Hint(student="a", teacher="b", variant="papers")
    with pytest.raises(ValueError, match="semckd"):
        Hint(student="a", teacher="b", pairing="attention")


def test_hint_by_cka_saves_its_pairs_and_refuses_a_checkpoint_with_others(random):
    layers = {f"l{i}": random(8, 3, 2, 2, seed=i) for i in range(3)}

    def built(order):
        component = Hint(student=("s0", "s1"), teacher=("l0", "l1", "l2"), pairing="cka")
        component.setup(Captured({"s0": layers[order[0]], "s1": layers[order[1]]}), Captured(layers))
        return component

    component = built(("l2", "l0"))
    assert component.pairs == [(0, 2), (1, 0)]
    same = built(("l2", "l0"))
    same.load_state_dict(component.state_dict())
    assert torch.equal(same.adapters[0].weight, component.adapters[0].weight)
    with pytest.raises(RuntimeError, match="checkpoint pairs layers"):
        built(("l1", "l0")).load_state_dict(component.state_dict())
