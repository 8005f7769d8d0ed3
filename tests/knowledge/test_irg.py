"""IRG against numpy: vertices, edges, transformations across layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from kdx.capture import Captured
from kdx.knowledge.irg import IRG, edges, irg, transformation


def pooled(x):
    return x.mean(axis=(2, 3)) if x.ndim == 4 else x


def edges_oracle(x):
    x = pooled(x)
    d = np.array([[((a - b) ** 2).sum() for b in x] for a in x])
    return d / d.max() if d.max() > 0 else d


def transformation_oracle(a, b):
    d = ((pooled(a) - pooled(b)) ** 2).sum(axis=1)
    return d / d.max() if d.max() > 0 else d


def oracle(students, teachers, edge_weight, transform_weight, transform):
    graphs_s, graphs_t = [edges_oracle(x) for x in students], [edges_oracle(x) for x in teachers]
    total = edge_weight * np.mean([np.mean((a - b) ** 2) for a, b in zip(graphs_s, graphs_t, strict=True)])
    changes = []
    for i in range(len(students) - 1):
        if transform in ("vertex", "both"):
            s = transformation_oracle(students[i], students[i + 1])
            changes.append(np.mean((s - transformation_oracle(teachers[i], teachers[i + 1])) ** 2))
        if transform in ("edge", "both"):
            s, t = (graphs_s[i + 1] - graphs_s[i]) ** 2, (graphs_t[i + 1] - graphs_t[i]) ** 2
            changes.append(np.mean((s - t) ** 2))
    return float(total + (transform_weight * np.mean(changes) if changes else 0))


@pytest.fixture
def layers(random):
    s = [random(5, 4, 4, 4, seed=1), random(5, 4, 2, 2, seed=2), random(5, 4, seed=3)]
    t = [random(5, 6, 4, 4, seed=4, std=9.0), random(5, 6, seed=5), random(5, 6, 1, 1, seed=6)]
    return s, t


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("transform", ["vertex", "edge", "both"])
def test_values(layers, transform, variant):
    s, t = layers
    got = irg(s, t, edge_weight=5.0, transform_weight=3.0, transform=transform, variant=variant)
    expected = oracle([x.numpy() for x in s], [x.numpy() for x in t], 5.0, 3.0, transform)
    assert got.item() == pytest.approx(expected, rel=1e-10)


def test_edges_and_transformations_lie_between_0_and_1(layers):
    s, _ = layers
    np.testing.assert_allclose(edges(s[0]).numpy(), edges_oracle(s[0].numpy()), rtol=1e-10, atol=1e-15)
    assert edges(s[0]).max() == 1
    assert transformation(s[0], s[1]).max() == 1


def test_edges_keep_their_digits_far_from_the_origin(random):
    x = random(6, 4).float()
    torch.testing.assert_close(edges(x + 1024.0), edges((x + 1024.0).double()).float(), rtol=1e-5, atol=1e-7)


def test_logits_are_the_vertices(random):
    s = {"f": random(5, 4, seed=1), "logits": random(5, 3, seed=2)}
    t = {"g": random(5, 7, seed=3), "logits": random(5, 3, seed=4)}
    got = IRG(student="f", teacher="g", vertex_weight=0.5)(Captured(s), Captured(t), None)
    vertices = np.mean((s["logits"].numpy() - t["logits"].numpy()) ** 2)
    assert got.item() == pytest.approx(0.5 * vertices + oracle([s["f"].numpy()], [t["g"].numpy()], 5.0, 5.0, "vertex"))


def test_the_teachers_last_layer_may_guide_every_student_layer(random):
    s = {"a": random(5, 4, seed=1), "b": random(5, 3, seed=2)}
    t = {"c": random(5, 7, seed=3)}
    component = IRG(student=("a", "b"), teacher=("c", "c"), vertex_weight=0, transform_weight=0)
    each = [oracle([x.numpy()], [t["c"].numpy()], 5.0, 0.0, "vertex") for x in s.values()]
    assert component(Captured(s), Captured(t), None).item() == pytest.approx(sum(each) / 2)


def test_gradients(random):
    s = [random(4, 3, seed=1).requires_grad_(), random(4, 3, seed=2).requires_grad_()]
    t = [random(4, 5, seed=3), random(4, 5, seed=4)]
    assert gradcheck(lambda a, b: irg([a, b], t, transform="both"), s)


def test_the_codes_gradient_takes_the_largest_distance_for_a_constant(random):
    x, target = random(4, 3, seed=1).requires_grad_(), random(4, 3, seed=2)
    loss = irg([x], [target], edge_weight=1.0, variant="code")
    (gradient,) = torch.autograd.grad(loss, x)
    plain = x.detach().clone().requires_grad_()
    d = (plain[:, None] - plain[None]).square().sum(-1)
    constant = float(d.detach().max())
    (expected,) = torch.autograd.grad((d / constant - edges(target)).square().mean(), plain)
    torch.testing.assert_close(gradient, expected)
    (other,) = torch.autograd.grad(irg([x], [target], edge_weight=1.0), x)
    assert (gradient - other).norm() > 1e-3 * gradient.norm()


def test_weights_that_give_the_authors_code(random):
    """Their Caffe layers: half the squared error over the first dimension, one end of each edge backward."""
    n = 6
    s, s_deep, t, t_deep = (random(n, 3, seed=seed) for seed in range(4))
    a_s, a_t = edges_oracle(s.numpy()), edges_oracle(t.numpy())
    b_s, b_t = transformation_oracle(s.numpy(), s_deep.numpy()), transformation_oracle(t.numpy(), t_deep.numpy())

    value = 0.005 * ((a_s - a_t) ** 2).sum() / (2 * n)  # [N, N, 1, 1]: the first dimension is N
    assert irg([s], [t], edge_weight=0.0025 * n).item() == pytest.approx(value, rel=1e-10)
    value = 0.005 * ((b_s - b_t) ** 2).sum() / 2  # [1, 1, 1, N]
    changes = irg([s, s_deep], [t, t_deep], edge_weight=0.0, transform_weight=0.0025 * n)
    assert changes.item() == pytest.approx(value, rel=1e-10)

    top = 0.005 * (a_s - a_t) / n  # what their loss hands back to the layer of edges
    largest = ((s.numpy()[:, None] - s.numpy()) ** 2).sum(-1).max()
    expected = (2 * top[..., None] * (s.numpy()[:, None] - s.numpy()) / largest).sum(1)
    s.requires_grad_()
    irg([s], [t], edge_weight=0.00125 * n, variant="code").backward()
    np.testing.assert_allclose(s.grad, expected, rtol=1e-9)


def test_what_holds_for_relations(check_relation):
    check_relation(lambda s, t: irg([s.flatten(1)], [t]))


def test_samples_that_are_all_equal_and_a_batch_of_one_have_no_edges(random):
    for n in (1, 4):
        x = torch.ones(n, 3, requires_grad=True)
        loss = irg([x, 2 * x], [random(n, 3).float(), random(n, 3, seed=1).float()], transform="both")
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(x.grad).all()
        assert (edges(x) == 0).all()


def test_rotation_translation_and_scale_change_nothing(random):
    s, t = [random(5, 4, seed=1), random(5, 4, seed=2)], [random(5, 3, seed=3), random(5, 3, seed=4)]
    rotation, _ = torch.linalg.qr(random(4, 4, seed=5))
    moved = [3 * x @ rotation + 2 for x in s]
    torch.testing.assert_close(irg(moved, t, transform="both"), irg(s, t, transform="both"))


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_the_component_stands_what_all_do(random, check_component, variant):
    s = {"a": random(6, 4, 2, 2, seed=1), "b": random(6, 4, seed=2), "logits": random(6, 3, seed=3)}
    t = {"x": random(6, 5, seed=4), "y": random(6, 5, seed=5), "logits": random(6, 3, seed=6)}
    component = IRG(student=("a", "b"), teacher=("x", "y"), transform="both", variant=variant)
    check_component(component, s, t)


def test_errors_say_what_to_do(random):
    a, b = random(4, 3), random(4, 5)
    with pytest.raises(ValueError, match=r"\[4, 3\] and \[4, 5\] cannot be subtracted; .*transform='edge'"):
        irg([a, b], [a, b])
    assert torch.isfinite(irg([a, b], [b, a], transform="edge"))
    with pytest.raises(ValueError, match="as many layers of each, got 2 and 1"):
        irg([a, b], [a])
    with pytest.raises(ValueError, match="transform: there is no 'edges'; did you mean 'edge'"):
        IRG(transform="edges")
    with pytest.raises(ValueError, match="expected the student's shape"):
        IRG()(Captured({"logits": a}), Captured({"logits": b}), None)
