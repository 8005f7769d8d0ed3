"""KDCL: what the ensemble is, and what each peer sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kdx
from kdx.batch import Batch
from kdx.capture import Captured
from kdx.schemes.kdcl import KDCL, linear_ensemble, min_logit_ensemble, naive_ensemble


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(0, 2, (3, 16, 5)))


@pytest.fixture
def targets() -> torch.Tensor:
    found = torch.arange(16) % 5
    found[12:] = -100
    return found


def test_naive_and_min_logit_are_what_the_paper_says_row_by_row(logits, targets) -> None:
    naive, least = naive_ensemble(logits, targets), min_logit_ensemble(logits, targets)
    for row in range(12):
        label = int(targets[row])
        loss = [F.cross_entropy(z[row : row + 1], targets[row : row + 1]).item() for z in logits]
        assert naive[row].equal(logits[int(np.argmin(loss)), row])
        relative = [z[row] - z[row, label] for z in logits]
        torch.testing.assert_close(least[row], torch.stack(relative).min(0).values)
        assert least[row].softmax(0)[label] >= max(z[row].softmax(0)[label] for z in logits)
    for combined in (naive, least, linear_ensemble(logits, targets)):
        torch.testing.assert_close(combined[12:], logits.mean(0)[12:])


def test_the_linear_ensemble_is_the_best_convex_combination(logits, targets) -> None:
    found = F.cross_entropy(linear_ensemble(logits, targets), targets).item()
    best = min(
        F.cross_entropy(a * logits[0] + b * logits[1] + (1 - a - b) * logits[2], targets).item()
        for a in np.linspace(0, 1, 41)
        for b in np.linspace(0, 1 - a, 41)
    )
    assert found <= best + 1e-3


@pytest.mark.parametrize("rule", ["naive", "linear", "min-logit"])
def test_every_peer_learns_from_the_ensemble_and_no_gradient_passes(net, batch, rule) -> None:
    peers = [net(3), net(4)]
    scheme = KDCL(peers, ensemble=rule).eval()
    terms = scheme(batch).terms
    with torch.no_grad():
        z = torch.stack([peer(batch.inputs) for peer in peers])
        rules = {"naive": naive_ensemble, "linear": linear_ensemble, "min-logit": min_logit_ensemble}
        target = (rules[rule](z, batch.targets) / 2).softmax(1)
    for i in range(2):
        expected = 4 * F.kl_div((z[i] / 2).log_softmax(1), target, reduction="batchmean")
        torch.testing.assert_close(terms[f"peer{i}/kd"], expected)
        own = terms[f"peer{i}/kd"] + terms[f"peer{i}/task"]
        found = torch.autograd.grad(own, list(peers[1 - i].parameters()), retain_graph=True, allow_unused=True)
        assert all(gradient is None for gradient in found)


def test_peers_see_different_views_of_the_same_images_drawn_by_sample_and_epoch(net, batch) -> None:
    scheme = KDCL([net(3), net(4)]).train()
    first, second = scheme.view(0, batch), scheme.view(1, batch)
    assert not first.equal(second)
    assert scheme.view(0, batch).equal(first)
    half = Batch(batch.inputs[8:], batch.targets[8:], batch.index[8:])
    assert scheme.view(0, half).equal(first[8:])
    scheme.epoch_start(1, 2)
    assert not scheme.view(0, batch).equal(first)
    other = KDCL([net(3), net(4)]).train()
    other.load_state_dict(scheme.state_dict())
    assert other.view(0, batch).equal(scheme.view(0, batch))  # resumed amid an epoch
    assert scheme.eval().view(0, batch) is batch.inputs
    own = KDCL([net(3), net(4)], views=lambda inputs, peer: inputs + peer).train()
    assert own.view(1, batch).equal(batch.inputs + 1)


def test_what_it_needs_is_said(net, batch) -> None:
    scheme = KDCL([net(3), net(4)]).train()
    with pytest.raises(ValueError, match=r"needs batch\.index"):
        scheme(Batch(batch.inputs, batch.targets))
    with pytest.raises(ValueError, match=r"images \[N, C, H, W\]"):
        scheme(Batch(batch.inputs.flatten(1), batch.targets, batch.index))
    with pytest.raises(ValueError, match=r"needs batch\.targets"):
        scheme.eval()(Batch(batch.inputs))
    with pytest.raises(ValueError, match="ensemble: there is no 'mean'"):
        KDCL([net(3), net(4)], ensemble="mean")
    assert kdx.make("scheme", "kdcl", [net(3), net(4)], shift=0, flip=0.0).train().view(0, batch) is batch.inputs


@pytest.mark.parametrize("rule", ["naive", "linear", "min-logit"])
def test_pixels_are_combined_as_rows_are(rule, logits, targets) -> None:
    scheme = KDCL([torch.nn.Conv2d(2, 5, 1), torch.nn.Conv2d(2, 5, 1)], ensemble=rule, shift=0, flip=0)
    dense = [Captured({"logits": each.view(4, 2, 2, 5).permute(0, 3, 1, 2)}) for each in logits]
    found = scheme.answers(dense, Batch(None, targets.view(4, 2, 2)))["ensemble"].logits
    rows = {"naive": naive_ensemble, "linear": linear_ensemble, "min-logit": min_logit_ensemble}[rule](logits, targets)
    torch.testing.assert_close(found, rows.view(4, 2, 2, 5).permute(0, 3, 1, 2))
    with pytest.raises(ValueError, match=r"\[4, 2, 2\] for logits of shape \[4, 5, 2, 2\], got shape \[16\]"):
        scheme.answers(dense, Batch(None, targets))


def test_views_that_move_pixels_with_labels_of_their_own_are_refused() -> None:
    batch = Batch(torch.randn(2, 1, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64), torch.arange(2))
    task = kdx.make("task", "segmentation")
    peers = [nn.Conv2d(1, 3, 1), nn.Conv2d(1, 3, 1)]
    for views in ({}, {"shift": 0}, {"flip": 0.0}):
        with pytest.raises(ValueError, match="labels of their pixels stay where they are: write shift=0, flip=0"):
            KDCL(peers, task=task, **views)(batch)
    KDCL(peers, task=task, shift=0, flip=0.0)(batch)
    KDCL(peers, task=task, views=lambda inputs, peer: inputs + peer)(batch)
