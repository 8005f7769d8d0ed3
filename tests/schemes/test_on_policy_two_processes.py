"""On two processes each student writes to its share of the prompts, and both end as one model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.ranks import on_two_ranks

TRAIN = """
import json, sys
import torch, kdx
import torch.distributed as dist
from torch.utils.data import DataLoader
from kdx.datasets import Rollouts
from tests.language_models import Causal, batches

rank, store, whole = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "maker"
dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
ids, targets = (torch.cat(parts) for parts in zip(*batches(4)))
rows = [(ids[i], targets[i], i) for i in range(len(ids))]
student, seen = Causal(), []

class Kept(Rollouts):
    def make(self, batch):
        made = super().make(batch)
        seen.append([batch.index.tolist(), made.inputs.tolist(), "rollout" in made.views])
        return made

loader = DataLoader(rows, 2)
scheme = kdx.schemes.OnPolicy(student, Causal(8, seed=1))
train = Kept(loader, student, share=0.6, max_new_tokens=4, seed=3) if whole else loader
run = kdx.fit(scheme, train, optimizer={"name": "SGD", "lr": 0.3}, seed=0, device="cpu", progress=False)
weights = torch.cat([parameter.detach().flatten() for parameter in student.parameters()])
dist.barrier()
dist.destroy_process_group()
print(json.dumps({"seen": seen, "weights": weights.tolist(), "steps": run.step}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["maker", "scheme"])
def test_prompts_are_shared_out_and_both_end_with_the_same_weights(kind: str, tmp_path: Path) -> None:
    one, other = (json.loads(line) for line in on_two_ranks(TRAIN, str(tmp_path / "store"), kind))
    assert one["weights"] == other["weights"]
    assert one["steps"] == other["steps"] == 4
    if kind == "maker":
        first, second = one["seen"][-4:], other["seen"][-4:]
        assert not {i for rows, _, _ in first for i in rows} & {i for rows, _, _ in second for i in rows}
        assert [own for _, _, own in first] == [own for _, _, own in second]
        assert any(own for _, _, own in first)
