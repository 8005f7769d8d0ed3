"""Losses between samples on two ranks are those of one process on the whole batch; so are the steps of a training."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import kdx
from kdx.capture import Captured
from kdx.features.gathering import whole_batch
from tests.ranks import on_two_ranks

COMPONENTS = {"sp": {}, "pkt": {}, "cc": {}, "dist": {}, "rkd": {}, "irg": {"vertex_weight": 0.0}}

# A training of three steps, on one process with batches twice as large; and the memory of CRD after one batch.
TRAIN = """
import torch, kdx
from kdx.batch import Batch
from kdx.capture import Captured
from torch.utils.data import DataLoader, TensorDataset

def remember(rows, seed):
    torch.manual_seed(0)
    s, t = torch.randn(4, 6), torch.randn(4, 9)
    component = kdx.make("knowledge", "crd", student="s", teacher="t", samples=50, dim=5, negatives=16)
    component.setup(Captured({"s": s}), Captured({"t": t}))
    torch.manual_seed(seed)
    index = torch.tensor([3, 17, 0, 42])[rows]
    component(Captured({"s": s[rows]}), Captured({"t": t[rows]}), Batch(None, index=index))
    return component.bank_student.tolist(), component.bank_teacher.tolist(), component.log_z.tolist()

def train(batch_size):
    torch.manual_seed(0)
    student, teacher = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    knowledge = {"kd": kdx.SoftTargets(2.0), "sp": (10.0, kdx.make("knowledge", "sp"))}
    data = TensorDataset(torch.randn(24, 5), torch.arange(24) % 3)
    kdx.fit(
        kdx.Offline(student, teacher, knowledge=knowledge),
        DataLoader(data, batch_size),
        optimizer={"name": "SGD", "lr": 0.5},
        schedule=None,
        device="cpu",
    )
    return student.weight.flatten().tolist()
"""

# What each rank runs: its half of the batch through one linear layer, every component's loss, and the gradient of the
# weight averaged over ranks as data parallelism does.
RANK = """
import json, sys
import torch, torch.distributed as dist
import kdx
from kdx.capture import Captured

rank, store, components = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
generator = torch.Generator().manual_seed(0)
x, t, w = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((8, 5), (8, 6), (6, 5)))
half = slice(4 * rank, 4 * rank + 4)
found = {}
for name, options in components.items():
    weight = w.clone().requires_grad_()
    student, teacher = Captured({"logits": x[half] @ weight.T}), Captured({"logits": t[half]})
    loss = kdx.make("knowledge", name, **options)(student, teacher, None)
    (gradient,) = torch.autograd.grad(loss, weight)
    dist.all_reduce(gradient)
    found[name] = [loss.item(), (gradient / 2).flatten().tolist()]
found["fit"] = train(4)
found["crd"] = remember(slice(2 * rank, 2 * rank + 2), seed=rank)
dist.barrier()
dist.destroy_process_group()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Component -> loss and averaged gradient, as each of two processes found them."""
    store = tmp_path_factory.mktemp("ranks") / "store"
    return [json.loads(line) for line in on_two_ranks(TRAIN + RANK, str(store), json.dumps(COMPONENTS))]


@pytest.mark.parametrize("name", COMPONENTS)
def test_two_ranks_take_the_step_of_one_process_on_the_whole_batch(ranks, name):
    generator = torch.Generator().manual_seed(0)
    x, t, w = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((8, 5), (8, 6), (6, 5)))
    weight = w.clone().requires_grad_()
    component = kdx.make("knowledge", name, **COMPONENTS[name])
    loss = component(Captured({"logits": x @ weight.T}), Captured({"logits": t}), None)
    (gradient,) = torch.autograd.grad(loss, weight)
    halves = [
        component(Captured({"logits": x[part] @ weight.T}), Captured({"logits": t[part]}), None).item()
        for part in (slice(0, 4), slice(4, 8))
    ]
    assert sum(halves) / 2 != pytest.approx(loss.item(), rel=1e-3), "each rank alone would have another loss"
    for rank in ranks:
        assert rank[name][0] == pytest.approx(loss.item(), rel=1e-10)
        torch.testing.assert_close(torch.tensor(rank[name][1], dtype=torch.float64), gradient.flatten())


def test_a_training_on_two_ranks_goes_through_the_wrapper_that_synchronises_gradients(ranks):
    alone: dict[str, Any] = {}
    exec(TRAIN, alone)
    expected = alone["train"](8)
    for rank in ranks:
        assert rank["fit"] == pytest.approx(expected, rel=1e-5)


def test_crd_on_two_ranks_keeps_one_bank_and_one_z(ranks):
    one, other = (rank["crd"] for rank in ranks)
    assert one == other
    alone: dict[str, Any] = {}
    exec(TRAIN, alone)
    expected = alone["remember"](slice(0, 4), seed=0)
    for bank, wanted in zip(one[:2], expected[:2], strict=True):
        torch.testing.assert_close(torch.tensor(bank), torch.tensor(wanted))


def test_one_process_has_the_whole_batch_itself():
    rows = torch.ones(3, 2)
    assert whole_batch(rows) is rows
