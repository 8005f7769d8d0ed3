"""Students with fewer layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import kdx
from kdx.capture import Taps
from kdx.errors import StudentError
from kdx.students import Depth, derive
from tests.students import nets

GREY = torch.zeros(2, 1, 28, 28)


def removed(teacher, inputs, **budget):
    return derive(teacher, inputs, how="depth", **budget).edit.removed


def test_blocks_go_one_by_one_and_those_that_stay_are_spread_evenly():
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)))  # 20 parameters each
    expected = {119: "5", 99: "25", 79: "135", 59: "1245", 39: "12345"}  # the first one always stays
    for params, gone in expected.items():
        assert removed(net, torch.zeros(2, 4), params=params) == list(gone)
    with pytest.raises(StudentError, match="it reaches 20 params to 120 params"):
        removed(net, torch.zeros(2, 4), params=19)


def test_blocks_go_from_the_sequence_that_has_most():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.short = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
            self.long = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            x = self.short(x)
            for layer in self.long:
                x = layer(x)
            return x

    # the first layer of "short" changes the shape, so that its second one may go; one of "long" has to stay
    for params, gone in ((95, ["long.2"]), (75, ["long.1", "long.2"]), (40, ["short.1", "long.1", "long.2"])):
        assert removed(Two(), torch.zeros(2, 3), params=params) == gone


def test_remaining_blocks_keep_their_names_and_weights():
    teacher = nets.settled(kdx.make("model", "resnet", depth=20), torch.randn(8, 1, 28, 28))
    derived = derive(teacher, GREY, how="depth", params="60%", taps=["layer3.0", "layer3.0.conv2", "avgpool"])
    # the block that a stage begins with changes the shape, and layer1 keeps its first
    assert all(name.split(".")[1] != "0" for name in derived.edit.removed)
    own, old = derived.model.state_dict(), teacher.state_dict()
    assert own.keys() < old.keys()
    assert all(torch.equal(value, old[name]) for name, value in own.items())
    survivors = [f"layer{k}.{i}" for k in (1, 2, 3) for i in range(3) if f"layer{k}.{i}" not in derived.edit.removed]
    captured = Taps(derived.model, survivors)(GREY)
    assert [name for name in captured if name != "logits"] == survivors


def test_a_convolution_goes_with_its_norm_and_activation_but_not_its_pooling():
    teacher = kdx.make("model", "convnet", width=4, stages=2, depth=2)
    assert removed(teacher, GREY, params="70%") == ["stage2.conv2", "stage2.norm2", "stage2.relu2"]
    student = derive(teacher, GREY, how="depth", params="40%").model
    assert [name for name, _ in student.stage1.named_children()] == ["conv1", "norm1", "relu1", "pool"]


def test_a_torchvision_like_vgg_and_a_transformer_lose_layers():
    last = ["features.10", "features.11", "features.12"]
    assert removed(nets.VGG(), nets.IMAGES, params="85%") == last
    assert removed(nets.VGG(), nets.IMAGES, params="76%") == [*last, "classifier.3", "classifier.4"]
    inputs = (nets.TOKENS, nets.MASK)
    assert removed(nets.TextEncoder(depth=4), inputs, params="70%") == ["encoder.layers.1", "encoder.layers.3"]


def test_nothing_to_leave_out_says_so():
    with pytest.raises(
        StudentError, match=r"13,218 params to 13,218.*no child of an nn\.Sequential .* gives the shape"
    ):
        derive(kdx.make("model", "mlp", hidden=(16, 24), input_shape=(1, 28, 28)), GREY, how="depth", params="50%")


def test_a_model_that_numbers_its_blocks_is_refused():
    class Numbered(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))

        def forward(self, x):
            for k in range(3):
                x = self.blocks[k](x)
            return x

    with pytest.raises(StudentError, match="does not run on what its teacher takes: IndexError"):
        derive(Numbered(), torch.zeros(2, 3), how="depth", params="70%")
    with pytest.raises(StudentError, match=r"no module 'blocks\.7'"):
        Depth(removed=["blocks.7"]).build(Numbered())
