"""A sub-network on the weights of the whole: the same function as the network alone, one storage, own statistics."""

from __future__ import annotations

import random

import pytest
import torch
from kdx_search.calibration import recalibrate
from kdx_search.space import Space
from kdx_search.sub_network import SubNetwork
from search_nets import Wide, images, seeded
from torch import nn

import kdx


def settled(model: nn.Module, x: torch.Tensor) -> nn.Module:
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(x)
    return model


NETS = {
    "wide": (lambda: seeded(Wide), images(6)),
    "resnet": (lambda: kdx.make("model", "resnet", depth=8), torch.randn(6, 1, 14, 14)),
    "vit": (lambda: kdx.make("model", "vit", depth=2), torch.randn(3, 1, 28, 28)),
}


@pytest.mark.parametrize("name", NETS)
def test_it_computes_what_the_extracted_network_computes(name: str) -> None:
    make, x = NETS[name]
    whole, x = settled(make().double(), x.double()).eval(), x.double()
    space = Space.of(whole, x)
    for choice in (space.smallest, space.sample(random.Random(0)), space.sample(random.Random(1))):
        part = SubNetwork(space, choice)
        alone = part.extract()
        assert sum(p.numel() for p in alone.parameters()) == space.cost(choice).parameters
        torch.testing.assert_close(part(x), alone(x), rtol=1e-12, atol=1e-12)
        assert not torch.allclose(part(x), whole(x))
    whole_again = SubNetwork(space, space.largest)
    torch.testing.assert_close(whole_again(x), whole(x), rtol=1e-12, atol=1e-12)


def test_the_cut_network_is_the_whole_with_the_other_channels_silenced() -> None:
    whole = settled(seeded(Wide).double(), images(6).double()).eval()
    space = Space.of(whole, images().double())
    part = SubNetwork(space, {"width:blocks.0.conv1": 4, "kernel:stem": 3})
    x = images(5, seed=1).double()
    found = part(x)
    with torch.no_grad():
        whole.blocks[0].conv2.weight[:, 4:] = 0
        ring = torch.ones(5, 5, dtype=torch.bool)
        ring[1:4, 1:4] = False
        whole.stem.weight[..., ring] = 0
        torch.testing.assert_close(found, whole(x), rtol=1e-12, atol=1e-12)


def test_a_step_on_the_part_moves_the_whole_there_and_nowhere_else() -> None:
    whole = seeded(Wide)
    space = Space.of(whole, images())
    part = SubNetwork(space, {"width:blocks.0.conv1": 4, "depth:blocks": 1})
    assert {id(p) for p in part.parameters()} == {id(p) for p in whole.parameters()}
    before = whole.blocks[0].conv1.weight.detach().clone()
    optimizer = torch.optim.SGD(part.parameters(), lr=0.1)
    part(images(6)).square().sum().backward()
    optimizer.step()
    moved = (whole.blocks[0].conv1.weight - before).flatten(1).abs().sum(1) > 0
    assert moved.tolist() == [True] * 4 + [False] * 12
    assert whole.blocks[1].conv1.weight.grad is None
    with torch.no_grad():
        whole.fc.bias += 1
    torch.testing.assert_close(part.weights()["fc.bias"], whole.fc.bias)
    assert part.weights()["blocks.0.conv1.weight"].untyped_storage().data_ptr() == (
        whole.blocks[0].conv1.weight.untyped_storage().data_ptr()
    )


def test_an_extracted_network_is_trained_apart() -> None:
    whole = seeded(Wide)
    alone = SubNetwork(Space.of(whole, images()), {"width:stem": 4}).extract()
    before = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.1)
    alone.train()(images(6)).sum().backward()
    optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in whole.state_dict().items())


def test_its_passes_leave_the_statistics_of_the_whole_alone() -> None:
    whole = settled(seeded(Wide), images(6)).train()
    before = whole.norm.running_mean.clone()
    SubNetwork(Space.of(whole, images()), {"width:stem": 4})(images(6, seed=2))
    assert torch.equal(whole.norm.running_mean, before)


def test_recalibration_gives_the_statistics_that_its_batches_have() -> None:
    whole = settled(seeded(Wide).double(), images(6).double()).eval()
    part = SubNetwork(Space.of(whole, images().double()), {"width:blocks.0.conv1": 4, "depth:blocks": 1})
    batches = [(images(8, seed=k).double(), None) for k in range(3)]
    stale, state = part(images(5).double()), {name: t.clone() for name, t in whole.state_dict().items()}
    assert recalibrate(part, batches) == 2
    norm = part.structure.norm
    made = [nn.functional.conv2d(x, whole.stem.weight, padding=2) for x, _ in batches]
    torch.testing.assert_close(norm.running_mean, torch.stack([y.mean((0, 2, 3)) for y in made]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([y.var((0, 2, 3)) for y in made]).mean(0))
    assert not torch.allclose(part(images(5).double()), stale)
    assert all(torch.equal(tensor, state[name]) for name, tensor in whole.state_dict().items())
    assert not any(module.training for module in whole.modules())
    torch.testing.assert_close(part.extract().norm.running_var, norm.running_var)
    again = norm.running_mean.clone()
    recalibrate(part, batches, limit=1)
    torch.testing.assert_close(norm.running_mean, made[0].mean((0, 2, 3)))
    assert not torch.equal(norm.running_mean, again)


def test_recalibration_of_a_model_runs_dropout_as_in_evaluation_and_keeps_its_momentum() -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(3, momentum=0.2)).train()
    x = torch.arange(12.0).reshape(4, 3)
    assert recalibrate(model, [(x, None)]) == 1
    torch.testing.assert_close(model[1].running_mean, x.mean(0))
    assert model[1].momentum == 0.2
    assert all(module.training for module in model.modules())
    assert recalibrate(nn.Linear(2, 2), iter([])) == 0
    with pytest.raises(ValueError, match="batches: expected at least one"):
        recalibrate(model, [])


def test_it_follows_the_modes_of_the_whole() -> None:
    whole = seeded(Wide).train()
    part = SubNetwork(Space.of(whole, images()), {"width:stem": 4})
    whole.norm.eval()
    before = part.structure.norm.running_mean.clone()
    part(images(4))
    assert torch.equal(part.structure.norm.running_mean, before)
    whole.train()
    part(images(4))
    assert not torch.equal(part.structure.norm.running_mean, before)
