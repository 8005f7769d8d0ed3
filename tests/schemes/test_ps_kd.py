"""PS-KD: the last epoch's predictions, kept per sample, soften this epoch's targets."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kdx
from kdx.datasets import Digits, View, symmetric_noise
from kdx.models import MLP
from kdx.schemes.ps_kd import PSKD
from kdx.training.evaluation import evaluate
from tests.loaders import Shuffled
from tests.ranks import on_two_ranks


def make(samples: int = 8, **options) -> PSKD:
    torch.manual_seed(0)
    scheme = PSKD(nn.Linear(3, 4).double(), samples=samples, **options)
    scheme.setup(data(range(4)))
    return scheme.double()


def data(rows, seed: int = 0) -> kdx.Batch:
    """Rows of a fixed data set of eight samples, in a view that depends on ``seed``."""
    rows = torch.tensor(list(rows))
    inputs = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return kdx.Batch(inputs[rows], rows % 4, rows)


def move(scheme: PSKD) -> None:
    with torch.no_grad():
        for parameter in scheme.student.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def test_value_and_gradient_are_those_of_the_paper_over_three_epochs_in_any_order() -> None:
    scheme = make(task=(0.7, F.cross_entropy), knowledge={"kd": (0.7, kdx.SoftTargets(1.0))}, alpha=0.6)
    weight = scheme.student.weight
    remembered: dict[int, torch.Tensor] = {}
    for epoch in range(3):
        scheme.epoch_start(epoch, 3)
        alpha = 0.6 * (epoch + 1) / 3
        now: dict[int, torch.Tensor] = {}
        for rows in (torch.randperm(8)[:5].tolist(), [7, 0, 3, 6, 1, 2, 5, 4]):
            batch = data(rows, seed=epoch)
            logits = scheme.student(batch.inputs)
            one_hot = F.one_hot(batch.targets, 4).double()
            earlier = torch.stack([remembered.get(row, one_hot[k]) for k, row in enumerate(rows)])
            target = (1 - alpha) * one_hot + alpha * earlier
            paper = -0.7 * (target * logits.softmax(1).log()).sum(1).mean()
            losses = scheme(batch)
            entropy = -torch.xlogy(earlier, earlier).sum(1).mean() if remembered else torch.tensor(0.0)
            torch.testing.assert_close(losses.total, paper - 0.7 * alpha * entropy, rtol=1e-10, atol=1e-12)
            mine, theirs = (torch.autograd.grad(loss, weight)[0] for loss in (losses.total, paper))
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
            now |= dict(zip(rows, logits.softmax(1).detach(), strict=True))
            move(scheme)
        remembered = now


def test_a_sample_that_comes_twice_in_an_epoch_is_answered_from_the_last_one() -> None:
    scheme = make()
    scheme.epoch_start(0, 4)
    scheme(data([1, 2]))
    scheme.epoch_start(1, 4)
    first = scheme.store.read(torch.tensor([1, 2]), scheme.taps(data([1, 2]).inputs)).logits
    move(scheme)
    scheme(data([1, 2]))
    move(scheme)
    scheme(data([2, 1]))
    assert scheme.store.read(torch.tensor([1, 2]), scheme.taps(data([1, 2]).inputs)).logits.equal(first)
    expected = scheme.student(data([1, 2]).inputs)
    scheme.epoch_start(2, 4)
    torch.testing.assert_close(scheme.store.before0[1:3], expected)


def test_a_row_that_was_never_seen_agrees_with_itself_and_one_left_out_keeps_its_last_answer() -> None:
    scheme = make()
    scheme.epoch_start(0, 3)
    scheme(data([0, 1]))
    kept = scheme.student(data([0]).inputs).detach()
    move(scheme)
    scheme.epoch_start(1, 3)
    assert scheme(data([5, 6])).terms["kd"].item() == 0.0
    scheme.epoch_start(2, 3)
    torch.testing.assert_close(scheme.store.before0[:1], kept)
    assert scheme(data([0])).terms["kd"].item() > 0.0


def test_the_stored_predictions_carry_no_gradient_and_evaluation_stores_nothing() -> None:
    scheme = make()
    scheme.epoch_start(0, 2)
    scheme(data(range(8)))
    before = {name: value.clone() for name, value in scheme.store.state_dict().items()}
    assert not any(value.requires_grad for value in before.values())
    move(scheme)
    scheme.eval()
    scheme(data(range(8)))
    assert all(value.equal(before[name]) for name, value in scheme.store.state_dict().items())


def test_a_second_run_forgets_the_first() -> None:
    scheme = make()
    for epoch in (0, 1, 0):
        scheme.epoch_start(epoch, 2)
        losses = scheme(data(range(8)))
    assert scheme.alpha_now.item() == 0.0
    assert losses.terms["kd"].item() == 0.0
    assert not scheme.store.seen_before.any()


def test_alpha_grows_linearly_to_eight_tenths_and_is_zero_in_the_first_epoch() -> None:
    scheme = make()
    seen = []
    for epoch in range(5):
        scheme.epoch_start(epoch, 5)
        seen.append(round(scheme.alpha_now.item(), 10))
    assert seen == [0.0, 0.32, 0.48, 0.64, 0.8]
    for epoch in (5, 9):  # of data that end sooner in an epoch than at the start
        scheme.epoch_start(epoch, 5)
        assert round(scheme.alpha_now.item(), 10) == 0.8


def test_the_size_comes_from_the_data_set_and_a_view_counts_the_whole() -> None:
    whole = TensorDataset(torch.randn(12, 3), torch.arange(12) % 4)
    scheme = PSKD(nn.Linear(3, 4))
    kdx.fit(scheme, DataLoader(View(whole, [3, 11, 5]), 2, shuffle=True), epochs=2, device="cpu")
    assert scheme.store.seen_now.nonzero().flatten().tolist() == [3, 5, 11]
    assert len(scheme.store.before0) == 12
    with pytest.raises(ValueError, match=r"samples: ps-kd keeps a prediction.*samples=len\(dataset\)"):
        kdx.fit(PSKD(nn.Linear(3, 4)), [data([0, 1])], device="cpu")


def test_a_batch_without_an_index_or_with_one_too_large_is_refused() -> None:
    scheme = make()
    with pytest.raises(ValueError, match=r"needs batch.index; let the data set yield kdx.Batch"):
        scheme(data([0, 1])._replace(index=None))
    small = make(samples=4)
    with pytest.raises(ValueError, match=r"samples is 4, but batch\.index holds 5"):
        small(data([0, 5]))
    with pytest.raises(ValueError, match=r"ps-kd: batch.index numbers the samples from 0, and holds -1 \(row 1\)"):
        small(data([0, -1]))
    for options, message in (
        ({"samples": 0}, "samples must be an integer >= 1"),
        ({"alpha": 1.2}, r"alpha must be >= 0 and <= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            PSKD(nn.Linear(3, 4), **options)
    with pytest.raises(RuntimeError, match=r"call scheme.setup\(batch\) once"):
        PSKD(nn.Linear(3, 4), samples=8)(data([0]))


def test_layers_can_be_remembered_too(net, images) -> None:
    inputs, targets = images
    knowledge = {
        "hint": kdx.Hint(student="conv", teacher="conv"),
        "rkd": kdx.make("knowledge", "rkd", student="flat", teacher="flat"),
        "kd": kdx.make("knowledge", "logits"),
    }
    scheme = PSKD(net(), samples=96, knowledge=knowledge)
    batch = kdx.Batch(inputs[:8], targets[:8], torch.arange(8))
    scheme.setup(batch)
    shapes = {name: tuple(value.shape) for name, value in scheme.store.named_buffers() if name.startswith("before")}
    assert sorted(shapes.values()) == [(96, 3), (96, 4), (96, 4, 8, 8)]
    for epoch in range(2):
        scheme.epoch_start(epoch, 2)
        losses = scheme(batch)
    assert losses.terms.keys() == {"task", *knowledge}
    assert losses.terms["hint"].item() > 0


def test_it_trains_in_bf16(net, images) -> None:
    inputs, targets = images
    loader = DataLoader(View(TensorDataset(inputs, targets)), 16)
    scheme = PSKD(net())
    kdx.fit(scheme, loader, epochs=2, mixed_precision="bf16", device="cpu")
    assert scheme.store.before0.dtype == torch.float32
    assert scheme.store.seen_before.all()


# Three epochs, each in another order, so that rows change ranks; on one process with batches twice as large.
TRAIN = """
import torch, kdx
from torch.utils.data import DataLoader, Sampler, TensorDataset
from kdx.datasets import View

class Rotated(Sampler):
    begun = 0

    def __len__(self):
        return 24

    def __iter__(self):
        self.begun += 1
        return iter(torch.arange(24).roll(5 * self.begun).tolist())

def train(batch_size):
    torch.manual_seed(0)
    data = View(TensorDataset(torch.randn(24, 5), torch.arange(24) % 3))
    scheme = kdx.make("scheme", "ps-kd", torch.nn.Linear(5, 3))
    loader = DataLoader(data, batch_size, sampler=Rotated())
    kdx.fit(scheme, loader, epochs=3, optimizer={"name": "SGD", "lr": 0.5}, schedule=None, device="cpu")
    assert scheme.store.seen_before.all()
    return [*scheme.student.weight.flatten().tolist(), *scheme.store.before0.flatten().tolist()]
"""
# CS-KD beside it: five batches of pairs for two ranks, so that one is taken twice, and it must stay whole.
PAIRS = """
from kdx.datasets import SameClassPairs

def pairs():
    torch.manual_seed(0)
    targets = torch.arange(23) % 3
    data = TensorDataset(torch.randn(23, 5), targets)
    scheme = kdx.make("scheme", "cs-kd", torch.nn.Linear(5, 3))
    loader = DataLoader(data, batch_sampler=SameClassPairs(targets, 5))
    run = kdx.fit(scheme, loader, epochs=2, optimizer={"name": "SGD", "lr": 0.5}, seed=1, device="cpu")
    return [run.step, *scheme.student.weight.flatten().tolist()]
"""
RANK = """
import json, sys
import torch.distributed as dist

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
found = [train(4), pairs()]
dist.barrier()
dist.destroy_process_group()
print(json.dumps(found))
"""


def test_two_ranks_remember_what_one_process_does_though_rows_change_ranks(tmp_path) -> None:
    alone: dict[str, Any] = {}
    exec(TRAIN, alone)
    expected = alone["train"](8)
    first, second = map(json.loads, on_two_ranks(TRAIN + PAIRS + RANK, str(tmp_path / "store")))
    for found, _ in (first, second):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert first[1] == second[1]  # both ranks hold the same student
    assert first[1][0] == 2 * 3
    assert all(map(math.isfinite, first[1]))


@pytest.mark.slow
def test_under_label_noise_it_beats_the_labels_alone() -> None:
    """40 % of the labels of the digits are wrong; pairs share data, noise, weights and order (20 of 20 seeds: +2.2)."""
    train, test = Digits("train"), Digits("test")
    inputs, unseen = (torch.stack([image for image, _ in split]) for split in (train, test))
    gains = []
    for seed in range(6):
        noisy = symmetric_noise(train.targets, 0.4, num_classes=10, seed=seed)
        accuracy = {}
        for name, options in (("supervised", {}), ("ps-kd", {"samples": len(train)})):
            torch.manual_seed(seed)
            model = MLP((256,), input_shape=(1, 8, 8))
            scheme = kdx.make("scheme", name, model, **options)
            adam = {"name": "AdamW", "lr": 0.005}
            kdx.fit(scheme, Shuffled(inputs, noisy), epochs=40, seed=seed, optimizer=adam, device="cpu")
            accuracy[name] = evaluate(model, [(unseen, test.targets)])["accuracy"]
        gains.append(100 * (accuracy["ps-kd"] - accuracy["supervised"]))
    assert sum(gain > 0 for gain in gains) >= 5, gains
    assert sum(gains) / len(gains) > 0.5, gains
