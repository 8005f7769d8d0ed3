"""Students without the blocks that matter least to what the network gives."""

from __future__ import annotations

import pytest
import torch
from kdx_prune.blocks import ByBlocks
from torch import nn

import kdx
from kdx.errors import StudentError
from kdx.features import unbiased_cka
from kdx.students import StudentData, derive
from kdx.testing import parametrize_checks

TASK = kdx.make("task", "classification")
ROWS = torch.randn(64, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
DATA = StudentData([kdx.Batch(ROWS[:32], None), kdx.Batch(ROWS[32:], None)], task=TASK)


@parametrize_checks(ByBlocks(rows=12))
def test_conformance(check) -> None:
    check()


class Residual(nn.Module):
    def __init__(self, strength):
        super().__init__()
        self.linear = nn.Linear(6, 6)
        nn.init.normal_(self.linear.weight, std=strength)

    def forward(self, x):
        return x + self.linear(x).tanh()


class Network(nn.Module):
    def __init__(self, strengths):
        super().__init__()
        self.blocks, self.fc = nn.Sequential(*map(Residual, strengths)), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.blocks(x))


def network(strengths=(1.0, 0.01, 0.5, 0.1)):
    torch.manual_seed(1)
    return Network(strengths).double()


@pytest.mark.parametrize("criterion", ["cka", "influence"])
def test_blocks_that_change_least_go_first(criterion):
    net = network()
    plan = ByBlocks(criterion=criterion).plan(net, ROWS[:2], DATA)
    assert plan.settings == 4  # one block stays
    assert [plan.edit(place).removed for place in (3, 2, 1)] == [[], ["blocks.1"], ["blocks.1", "blocks.3"]]
    student = derive(net, ROWS[:2], how=ByBlocks(criterion=criterion), params="65%", data=DATA)
    assert student.edit.removed == ["blocks.1", "blocks.3"]
    assert all(
        torch.equal(a, b) for a, b in zip(student.model.blocks[0].parameters(), net.blocks[0].parameters(), strict=True)
    )


def test_the_first_block_that_goes_is_the_one_of_the_highest_cka_by_hand():
    net = network((0.6, 0.5, 0.55))
    with torch.no_grad():
        alike = {}
        for number in range(3):
            x = ROWS[:32]
            for place, block in enumerate(net.blocks):
                x = x if place == number else block(x)
            alike[f"blocks.{number}"] = unbiased_cka(net.fc(x), net(ROWS[:32])).item()
    data = StudentData([kdx.Batch(ROWS[:32], None)], task=TASK)
    assert ByBlocks().plan(net, ROWS[:2], data).edit(1).removed == [max(alike, key=alike.get)]


def test_what_goes_second_is_judged_with_the_first_one_gone_and_by_the_teacher_given():
    class Times(nn.Module):
        def __init__(self, *scales):
            super().__init__()
            self.scales = nn.Parameter(torch.tensor(scales, dtype=torch.float64))

        def forward(self, x):
            return x * self.scales

    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            # the first two undo each other: alone the second matters most, with the first one gone not at all
            blocks = (
                Times(20, 1, 1, 1, 1, 1),
                Times(0.05, 1, 1, 1, 1, 1),
                Times(1, 1, 2, 1, 1, 1),
                Times(1, 1, 1, 1, 1, 1),
            )
            self.blocks = nn.Sequential(*blocks)

        def forward(self, x):
            return self.blocks(x)

    plan = ByBlocks().plan(Chain(), ROWS[:2], DATA)
    assert [plan.edit(place).removed for place in (2, 1)] == [["blocks.3"], ["blocks.0", "blocks.3"]]
    assert plan.edit(0).removed == ["blocks.0", "blocks.1", "blocks.3"]
    stretched = nn.Sequential(Times(20, 1, 1, 1, 1, 1))  # of the teacher's dimensions the first is all that counts
    plan = ByBlocks().guided_by(stretched).plan(Chain(), ROWS[:2], DATA)
    assert plan.edit(2).removed == ["blocks.1"]


def test_a_network_without_blocks_and_wrong_options_are_refused():
    flat = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    with pytest.raises(StudentError, match=r"Sequential: no child .* gives the shape it takes"):
        derive(flat, ROWS[:2], how="prune-blocks", params="50%", data=DATA)
    with pytest.raises(ValueError, match="criterion must be one of cka, influence; got 'loss'"):
        ByBlocks(criterion="loss")
    with pytest.raises(ValueError, match="rows must be at least 4; got 3"):
        ByBlocks(rows=3)
    with pytest.raises(StudentError, match="by training rows, and none were given"):
        derive(network(), ROWS[:2], how="prune-blocks", params="70%")
    with pytest.raises(StudentError, match="at least 4 rows"):
        derive(network(), ROWS[:2], how=ByBlocks(), params="70%", data=StudentData([kdx.Batch(ROWS[:3])], task=TASK))


def test_a_block_without_which_the_network_does_not_run_stays():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks, self.fc = nn.Sequential(*(Residual(0.5) for _ in range(3))), nn.Linear(6, 3)

        def forward(self, x):
            for name, block in self.blocks.named_children():
                x = block(x)
                last = name
            if last != "2":
                raise RuntimeError("the last one is gone")
            return self.fc(x)

    plan = ByBlocks().plan(Counting().double(), ROWS[:2], DATA)
    assert plan.edit(0).removed == ["blocks.0", "blocks.1"]
    assert [(kept.module, "the last one is gone" in kept.reason) for kept in plan.kept] == [("blocks.2", True)]


def test_a_resnet_and_a_transformer_lose_blocks():
    images = torch.randn(8, 1, 28, 28)
    data = StudentData([kdx.Batch(images, None)], task=TASK)
    for name, options in (("resnet", {"depth": 14}), ("vit", {"dim": 16, "depth": 3})):
        student = derive(kdx.make("model", name, **options), images[:2], how="prune-blocks", flops="75%", data=data)
        assert student.edit.removed
        assert student.model(images).shape == (8, 10)
