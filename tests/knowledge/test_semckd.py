"""SemCKD against an oracle; its attention must not depend on the batch size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdx.capture import Captured
from kdx.knowledge.semckd import SemCKD, semckd


def softmax(x):
    e = np.exp(x - x.max(2, keepdims=True))
    return e / e.sum(2, keepdims=True)


def test_semckd_has_the_value_of_the_oracle_and_the_right_gradient(random):
    errors, energies = random(4, 3, 2, seed=1).abs(), random(4, 3, 2, seed=2)
    expected = (softmax(energies.numpy()) * errors.numpy()).sum() / (4 * 3)
    assert semckd(errors, energies).item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(semckd, (errors.requires_grad_(), energies.requires_grad_()))


@pytest.fixture
def component(random):
    component = SemCKD(student=("a", "b"), teacher=("a", "b", "c"), temperature=0.1)
    s = {"a": random(4, 3, 4, 4, seed=1), "b": random(4, 5, 2, 2, seed=2)}
    t = {"a": random(4, 4, 4, 4, seed=3), "b": random(4, 6, 2, 2, seed=4), "c": random(4, 7, 2, 2, seed=5)}
    torch.manual_seed(0)
    component.setup(Captured(s), Captured(t))
    return component.double(), s, t


def test_semckd_passes_every_component_check(component, check_component):
    check_component(*component)


def test_semckd_attends_by_the_products_of_embedded_similarity_rows(component):
    semckd_, s, t = component

    def embed(net, feature):
        flat = feature.numpy().reshape(len(feature), -1)
        rows = flat @ flat.T
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True) * np.sqrt(len(rows))
        first, last = net[0], net[2]
        hidden = np.maximum(rows[..., None] * first.weight.detach().numpy()[:, 0] + first.bias.detach().numpy(), 0)
        out = (hidden @ last.weight.detach().numpy().T + last.bias.detach().numpy()).reshape(len(rows), -1)
        return out / np.linalg.norm(out, axis=1, keepdims=True)

    queries = np.stack([embed(net, f) for net, f in zip(semckd_.queries, s.values(), strict=True)], 1)
    keys = np.stack([embed(net, f) for net, f in zip(semckd_.keys, t.values(), strict=True)], 1)
    weights = softmax(np.einsum("nsd,ntd->nst", queries, keys) / 0.1)
    found = semckd_.attention(list(s.values()), list(t.values())).detach()
    np.testing.assert_allclose(found, weights, rtol=1e-9)
    semckd_.eval()
    with torch.no_grad():
        errors = np.zeros((4, 2, 3))
        for n, (i, j) in enumerate([(i, j) for i in range(2) for j in range(3)]):
            source, target = list(s.values())[i], list(t.values())[j]
            if source.shape[2] > target.shape[2]:
                source = source.reshape(4, -1, 2, 2, 2, 2).mean((3, 5))
            elif source.shape[2] < target.shape[2]:
                target = target.reshape(4, -1, 2, 2, 2, 2).mean((3, 5))
            errors[:, i, j] = (semckd_.adapters[n](source) - target).square().mean((1, 2, 3))
        loss = semckd_(Captured(s), Captured(t), None)
    assert loss.item() == pytest.approx((weights * errors).sum() / 8, rel=1e-9)


def test_semckd_takes_any_batch_size_and_any_order_of_samples(component, random):
    semckd_, s, t = component
    semckd_.eval()
    for n in (1, 2, 7):
        big = [Captured({k: random(n, *v.shape[1:], seed=n) for k, v in side.items()}) for side in (s, t)]
        assert torch.isfinite(semckd_(*big, None))
    order = torch.tensor([2, 0, 3, 1])
    mixed = [{k: v[order] for k, v in side.items()} for side in (s, t)]
    weights = semckd_.attention(list(s.values()), list(t.values()))
    torch.testing.assert_close(semckd_.attention(*[list(side.values()) for side in mixed]), weights[order])
    loss = semckd_(Captured(s), Captured(t), None)
    torch.testing.assert_close(semckd_(Captured(mixed[0]), Captured(mixed[1]), None), loss)
    doubled = [Captured({k: torch.cat([v, v]) for k, v in side.items()}) for side in (s, t)]
    torch.testing.assert_close(semckd_(*doubled, None), loss)


def test_semckd_attention_learns_to_prefer_the_teacher_layer_that_can_be_matched(random):
    torch.manual_seed(0)
    s = {"a": random(8, 4, 2, 2, seed=1)}
    t = {"noise": 3 * random(8, 4, 2, 2, seed=2), "same": s["a"].clone()}
    component = SemCKD(student="a", teacher=("noise", "same"), temperature=0.2)
    component.setup(Captured(s), Captured(t))
    component.double().eval()  # running statistics: a linear problem, which noise does not fit
    before = component.attention([s["a"]], list(t.values())).mean(0)[0, 1].item()
    trained = [*component.queries.parameters(), *component.keys.parameters()]
    optimizer = torch.optim.Adam(trained, lr=0.05)
    for _ in range(25):
        optimizer.zero_grad()
        component(Captured(s), Captured(t), None).backward()
        optimizer.step()
    after = component.attention([s["a"]], list(t.values())).mean(0)[0, 1].item()
    assert after > before + 0.2
