"""Students whose layers are products of two thin ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import kdx
from kdx.errors import StudentError
from kdx.students import LowRank, derive
from kdx.students.low_rank import plan_low_rank
from tests.students import nets

GREY = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["convnet", "mlp", "vit", "resnet"])
def test_a_factorisation_of_full_rank_reproduces_the_teacher(name):
    teacher = nets.settled(kdx.make("model", name, **{"vit": {"dim": 16, "depth": 1}}.get(name, {})), GREY)
    layers = {
        key: layer.weight
        for key, layer in teacher.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and not key.endswith("out_proj")
    }
    ranks = {key: min(weight.shape[0], weight[0].numel()) for key, weight in layers.items()}
    student = kdx.make("model", name, **{"vit": {"dim": 16, "depth": 1}}.get(name, {}))
    student.load_state_dict(teacher.state_dict())
    LowRank(ranks=ranks).derive(student, GREY)
    assert len(list(student.modules())) == len(list(teacher.modules())) + 2 * len(layers)
    with torch.no_grad():
        torch.testing.assert_close(student.eval()(GREY), teacher(GREY), rtol=1e-5, atol=1e-5)


def test_factors_are_the_best_of_their_rank_and_say_what_is_lost():
    teacher = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 2))
    derived = derive(teacher, torch.zeros(2, 40), how="low-rank", params=800)
    rank = derived.edit.ranks["0"]
    assert rank == 10  # 10 * (40 + 30) + 30 and 30 * 2 + 2; at rank 11 it would be 862
    assert list(derived.edit.ranks) == ["0"]
    pair, old = derived.model[0], teacher[0].weight.detach().double()
    values = torch.linalg.svdvals(old)
    lost = (old - (pair.up.weight @ pair.down.weight).detach().double()).norm()
    assert lost == pytest.approx(values[rank:].norm().item(), rel=1e-5)
    assert derived.origins["0.up.weight"].error == pytest.approx(float(lost / old.norm()), rel=1e-5)
    assert torch.equal(pair.up.bias, teacher[0].bias)
    assert pair.down.bias is None


def test_a_layer_that_would_not_get_smaller_stays():
    plan = plan_low_rank(nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 24), nn.Linear(24, 9)), torch.zeros(2, 40))
    assert plan.settings > 5
    for place in range(plan.settings):
        for name, rank in plan.edit(place).ranks.items():
            inputs, outputs = {"0": (40, 30), "1": (30, 24), "2": (24, 9)}[name]
            assert 8 <= rank < inputs * outputs / (inputs + outputs)  # "2" would need a rank of 6 or less


@pytest.mark.parametrize("train", [True, False])
def test_an_encoder_layer_runs_its_factors_in_both_modes(train):
    # in evaluation PyTorch would read linear1.weight, which is gone
    teacher = nets.TextEncoder(dim=32)
    inputs = (nets.TOKENS, nets.MASK)
    derived = derive(teacher, inputs, how="low-rank", params="75%")
    assert derived.edit.ranks
    assert derived.model.encoder.layers[0].linear1.down.out_features == derived.edit.ranks["encoder.layers.0.linear1"]
    assert [item.module for item in derived.kept] == [
        f"encoder.layers.{k}.self_attn (MultiheadAttention)" for k in range(3)
    ]
    with torch.no_grad():
        assert torch.isfinite(derived.model.train(train)(*inputs)).all()


def test_a_convolution_with_a_window_keeps_it_in_the_first_factor():
    derived = derive(nets.ResNet(width=16), nets.IMAGES, how="low-rank", params="70%")
    first = derived.model.layer2[0].conv2
    assert (first.down.kernel_size, first.down.stride, first.up.kernel_size) == ((3, 3), (2, 2), (1, 1))
    derived.model.train()(nets.IMAGES).sum().backward()
    assert all(parameter.grad is not None for parameter in derived.model.parameters())


def test_impossible_ranks_and_layers_are_refused():
    with pytest.raises(StudentError, match="rank of 'fc' must lie between 1 and 10; got 11"):
        LowRank(ranks={"fc": 11}).build(kdx.make("model", "mlp"))
    with pytest.raises(StudentError, match="at 'no'; there is none"):
        LowRank(ranks={"no": 1}).build(kdx.make("model", "mlp"))


def test_tied_weights_stay_and_are_named():
    net = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24), nn.Linear(24, 24))
    net[2].weight = net[0].weight
    derived = derive(net, torch.zeros(2, 24), how="low-rank", params="90%")
    assert list(derived.edit.ranks) == ["3"]
    assert {item.module for item in derived.kept} == {"0 (Linear)", "2 (Linear)"}


def test_a_layer_with_code_of_its_own_stays_and_is_named():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 10 * super().forward(x)

    class Standardised(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    net = nn.Sequential(Scaled(64, 64), nn.ReLU(), nn.Linear(64, 32))
    derived = derive(net, torch.zeros(2, 64), how="low-rank", params="90%")
    assert list(derived.edit.ranks) == ["2"]
    assert [item.module for item in derived.kept] == ["0 (Scaled)"]
    net = nn.Sequential(nn.Conv2d(1, 8, 3), Standardised(8, 8, 3), nn.Conv2d(8, 8, 3))
    derived = derive(net, torch.zeros(2, 1, 9, 9), how="depthwise")
    assert derived.edit.layers == ["2"]
    assert "derived from Conv2d" in derived.kept[1].reason
