"""Parameters, operations, size and latency of models."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

import kdx
from kdx.analysis.cost import measure_cost, measure_latency
from kdx.analysis.flops import count_flops
from kdx.analysis.layers import list_layers
from kdx.errors import CountError


def test_costs_of_a_small_net_are_those_one_counts_by_hand(net):
    cost = measure_cost(net(), torch.zeros(2, 1, 8, 8), repeats=5)
    assert cost.parameters == (9 * 4 + 4) + 2 * 4 + (4 * 3 + 3)
    assert cost.bytes == 4 * (cost.parameters + 2 * 4) + 8  # two running statistics and the number of batches
    assert cost.flops == 2 * (8 * 8 * 9 * 4) + 2 * (4 * 3)  # for one of the two samples
    assert cost.latency_ms > 0
    assert cost.latency_spread_ms >= 0


def test_operations_of_a_transformer_include_its_fused_products():
    # PyTorch runs an encoder layer in evaluation mode as one kernel, which its counter does not look into
    model = kdx.make("model", "vit", dim=16, depth=2, heads=2)
    tokens, dim = 49, 16
    patches, head = tokens * dim * 16, 10 * dim
    layer = tokens * dim * 3 * dim + 2 * tokens * tokens * dim + tokens * dim * dim + 2 * tokens * dim * 2 * dim
    assert count_flops(model, torch.zeros(3, 1, 28, 28)) == 2 * (patches + 2 * layer + head)
    assert torch.backends.mha.get_fastpath_enabled()


def test_operations_of_a_depthwise_convolution_are_those_of_its_groups():
    net = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 8, 1))
    assert count_flops(net, torch.zeros(1, 6, 5, 5)) == 2 * 25 * (6 * 9 + 6 * 8)


@pytest.mark.parametrize("name", ["convnet", "depthwise-net", "mlp", "resnet", "vit"])
def test_operations_are_the_sum_of_those_of_the_layers(name):
    model = kdx.make("model", name)
    images = torch.zeros(2, 1, 28, 28)
    outer = [layer for layer in list_layers(model, images) if "." not in layer.name]
    named = dict(model.named_children())
    assert {layer.name for layer in outer} <= set(named)
    assert sum(layer.flops for layer in outer) == count_flops(model, images)


def test_operations_of_an_lstm_include_those_of_its_fused_kernel():
    steps = 2 * 5 * (4 * 8 * 4 + 4 * 8 * 8)  # five steps, four gates that read 4 inputs and 8 states
    assert count_flops(nn.LSTM(4, 8, batch_first=True), torch.zeros(3, 5, 4)) == steps
    assert torch.backends.mkldnn.enabled
    assert torch.backends.cudnn.enabled


def test_latency_is_of_anything_that_takes_the_inputs():
    median, spread = measure_latency(lambda inputs: time.sleep(0.001) or inputs, torch.zeros(1), repeats=10)
    assert 1 <= median < 50
    assert spread >= 0


def test_what_cannot_be_counted_is_none_with_its_reason():
    model = nn.Sequential(nn.Linear(4, 3), Custom())
    cost = measure_cost(model, torch.zeros(2, 4), repeats=5)
    assert cost.parameters == 15
    assert cost.flops is None
    assert list(cost.uncounted) == ["flops"]
    assert "cannot be counted: Sequential runs kdx_tests_cost.mystery" in cost.uncounted["flops"]
    assert "register_flop_formula" in cost.as_dict()["uncounted"]["flops"]
    with pytest.raises(CountError, match="mystery"):
        count_flops(model, torch.zeros(2, 4))
    assert [(layer.parameters, layer.flops) for layer in list_layers(model, torch.zeros(2, 4))] == [
        (15, None),
        (0, None),
    ]


def test_a_vector_times_a_matrix_is_counted_as_a_product():
    class Scores(nn.Module):
        def __init__(self):
            super().__init__()
            self.by = nn.Parameter(torch.ones(6))

        def forward(self, inputs):
            return inputs @ self.by

    assert count_flops(Scores(), torch.zeros(3, 6)) == 2 * 6


@torch.library.custom_op("kdx_tests_cost::mystery", mutates_args=())
def mystery(inputs: torch.Tensor) -> torch.Tensor:
    return inputs @ torch.ones(inputs.shape[-1], inputs.shape[-1])


class Custom(nn.Module):
    def forward(self, inputs):
        return torch.ops.kdx_tests_cost.mystery(inputs)
