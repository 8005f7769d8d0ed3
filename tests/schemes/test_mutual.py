"""Mutual learning: who gets gradients, what moves in whose turn, and what noise it is good against."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kdx
from kdx.datasets import Digits, symmetric_noise
from kdx.hookspecs import hookimpl
from kdx.models import MLP
from kdx.training.evaluation import evaluate
from tests.loaders import Shuffled


def mutual(net, **options) -> kdx.Mutual:
    return kdx.Mutual([net(3), net(4), net(5)], knowledge={"kd": kdx.SoftTargets(1.0)}, **options)


def frozen_state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_a_turn_gives_one_peer_its_losses_and_changes_nothing_about_the_others(net, batch) -> None:
    scheme = mutual(net, updates="alternating").train()
    assert [phase.name for phase in scheme.phases] == ["peer0", "peer1", "peer2"]
    for turn, phase in enumerate(scheme.phases):
        before = [frozen_state(peer) for peer in scheme.peers]
        losses = scheme(batch, phase.name)
        assert losses.terms.keys() == {f"peer{turn}/task", f"peer{turn}/kd"}
        losses.total.backward()
        for i, peer in enumerate(scheme.peers):
            assert any(p.grad is not None for p in peer.parameters()) is (i == turn)
            moved = [name for name, value in peer.state_dict().items() if not value.equal(before[i][name])]
            assert bool(moved) is (i == turn)  # BatchNorm's statistics
        scheme.zero_grad()


def test_a_peer_learns_from_what_those_before_it_have_become(net, batch) -> None:
    """The algorithm of the paper by hand, with an optimizer for each peer; momentum and decay would show a slip."""
    scheme, reference = mutual(net, updates="alternating"), mutual(net)
    for scheme_ in (scheme, reference):
        for module in scheme_.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    reference.load_state_dict(scheme.state_dict())
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    optimizers = [torch.optim.SGD(peer.parameters(), **options) for peer in reference.peers]
    for _ in range(4):
        for i, peer in enumerate(reference.peers):
            with torch.no_grad():  # batch statistics, as in training; the buffers are put back below
                buffers = [frozen_state(other) for other in reference.peers]
                others = [other(batch.inputs) for other in reference.peers if other is not peer]
                for other, state in zip(reference.peers, buffers, strict=True):
                    for name, buffer in other.named_buffers():
                        buffer.copy_(state[name])
            z = peer(batch.inputs)
            kl = sum(F.kl_div(z.log_softmax(1), other.softmax(1), reduction="batchmean") for other in others) / 2
            optimizers[i].zero_grad()
            (F.cross_entropy(z, batch.targets) + kl).backward()
            optimizers[i].step()
    told = []

    class Counts:
        @hookimpl
        def kdx_step_end(self, step, losses) -> None:
            told.append((step, sorted(losses.terms)))

    kdx.fit(
        scheme,
        [batch] * 4,
        optimizer={"name": "SGD", **options},
        schedule=None,
        device="cpu",
        observers=[Counts()],
    )
    assert [step for step, _ in told] == [1, 2, 3, 4]  # a step is a batch, whatever the number of turns
    assert told[0][1] == [f"peer{i}/{name}" for i in range(3) for name in ("kd", "task")]
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(scheme.state_dict()[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_leftover_gradients_would_move_a_peer_out_of_turn(net, batch) -> None:
    """The trap: ``zero_grad`` once per batch, or to zeros instead of None, steps peers that do not learn."""

    def moved(set_to_none: bool) -> bool:
        scheme = mutual(net, updates="alternating").train()
        optimizer = torch.optim.SGD(scheme.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        for turn, phase in enumerate(scheme.phases[:2]):
            if turn == 1:
                before = scheme.peers[0].fc.weight.clone()
            scheme(batch, phase.name).total.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)
        return not scheme.peers[0].fc.weight.equal(before)

    assert moved(set_to_none=False)
    assert not moved(set_to_none=True)


def test_peers_are_isolated_whatever_the_component(net, batch) -> None:
    knowledge = {"kd": kdx.SoftTargets(1.0), "hint": kdx.Hint(student="conv", teacher="conv")}
    scheme = kdx.Mutual([net(3), net(4), net(5)], knowledge=knowledge)
    scheme.setup(batch)
    terms = scheme(batch).terms
    for i in range(3):
        own = sum(term for name, term in terms.items() if name.startswith(f"peer{i}/"))
        for j, other in enumerate(scheme.peers):
            found = torch.autograd.grad(own, list(other.parameters()), retain_graph=True, allow_unused=True)
            assert any(gradient is not None for gradient in found) is (i == j)


def test_turns_need_one_process_and_a_known_kind(net, loader, monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"updates: there is no .random.; known are"):
        mutual(net, updates="random")
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, "num_processes", property(lambda _: 2))
    with pytest.raises(ValueError, match="Mutual trains its parts in turn, and data parallelism waits"):
        kdx.fit(mutual(net, updates="alternating"), loader, device="cpu")


@pytest.mark.slow
def test_under_label_noise_peers_beat_the_same_peers_alone() -> None:
    """40 % of the labels of the digits are wrong; a peer and its control share data, noise, weights and order."""
    torch.set_num_threads(1)
    train, test = Digits("train"), Digits("test")
    inputs, unseen = (torch.stack([image for image, _ in split]) for split in (train, test))
    gains = []
    for seed in range(4):
        noisy = symmetric_noise(train.targets, 0.4, num_classes=10, seed=seed)
        torch.manual_seed(seed)
        peers = [MLP((128,), input_shape=(1, 8, 8)) for _ in range(2)]
        alone = copy.deepcopy(peers)
        together = kdx.Mutual(peers, knowledge={"kd": kdx.SoftTargets(1.0)})
        for scheme in (together, *(kdx.make("scheme", "supervised", model) for model in alone)):
            adam = {"name": "AdamW", "lr": 0.01}
            kdx.fit(scheme, Shuffled(inputs, noisy), epochs=40, seed=seed, optimizer=adam, device="cpu")
        for peer, control in zip(peers, alone, strict=True):
            taught, own = (evaluate(model, [(unseen, test.targets)])["accuracy"] for model in (peer, control))
            gains.append(100 * (taught - own))
    assert sum(gains) / len(gains) > 0, gains
