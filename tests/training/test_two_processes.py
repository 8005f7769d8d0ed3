"""The length of a run on two processes: steps, schedule and passes are those that are taken."""

from __future__ import annotations

import json

import pytest

from tests.ranks import on_two_ranks

TRAIN = """
import json, sys
import torch, kdx
import torch.distributed as dist
from torch.utils.data import DataLoader
from kdx.datasets import Digits, SampleStream, View
from kdx.hookspecs import hookimpl

rank, store, kind = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
view = View(Digits("train"), range(48))
rates, told = [], []

class Told(kdx.Supervised):
    def epoch_start(self, epoch, epochs):
        told.append([len(rates), epoch, epochs])

class Watch:
    @hookimpl
    def kdx_step_end(self, run):
        rates.append(run.learning_rate)

torch.manual_seed(0)
scheme = Told(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))
loader = DataLoader(SampleStream(view), 4) if kind == "stream" else DataLoader(view, 4, shuffle=True)
length = {"steps": 16} if kind == "stream" else {"epochs": 3}
run = kdx.fit(scheme, loader, observers=[Watch()], optimizer={"name": "SGD", "lr": 0.8}, device="cpu", **length)
dist.barrier()
dist.destroy_process_group()
print(json.dumps({"steps": run.step, "total": run.total_steps, "told": told, "last": rates[-1]}))
"""


@pytest.mark.quick(kind=["epochs"])
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("epochs", {"steps": 18, "total": 18, "told": [[0, 0, 3], [6, 1, 3], [12, 2, 3]]}),
        ("stream", {"steps": 16, "total": 16, "told": [[0, 0, 3], [6, 1, 3], [12, 2, 3]]}),
    ],
)
def test_the_steps_of_a_run_are_those_of_one_process_and_the_schedule_ends_with_them(kind, expected, tmp_path) -> None:
    for line in on_two_ranks(TRAIN, str(tmp_path / "store"), kind):
        found = json.loads(line)
        assert found.pop("last") == pytest.approx(0.0, abs=1e-9)
        assert found == expected


UNUSED = """
import json, sys
import torch, kdx
import torch.distributed as dist

rank, store, allowed = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "allowed"
dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
torch.manual_seed(0)

class Aux(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.body(x)

scheme = kdx.Supervised(Aux())
data = torch.utils.data.TensorDataset(torch.randn(24, 4), torch.arange(24) % 3)
try:
    run = kdx.fit(scheme, torch.utils.data.DataLoader(data, 4), device="cpu", unused_parameters=allowed)
    found = run.step
except ValueError as error:
    found = str(error)
dist.barrier()
dist.destroy_process_group()
print(json.dumps(found))
"""


@pytest.mark.parametrize("allowed", ["refused", "allowed"])
def test_parameters_that_no_loss_reaches_are_named_with_the_option_that_allows_them(allowed, tmp_path) -> None:
    for line in on_two_ranks(UNUSED, str(tmp_path / "store"), allowed):
        if allowed == "allowed":
            assert json.loads(line) == 3
        else:
            assert "parameters student.head.weight, student.head.bias, and" in json.loads(line)
            assert "unused_parameters=True" in json.loads(line)
