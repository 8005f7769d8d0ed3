"""Students whose convolutions are depth-wise separable."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import kdx
from kdx.errors import StudentError
from kdx.students import Depthwise, derive
from tests.students import nets

GREY = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def test_every_convolution_but_the_first_becomes_two():
    teacher = kdx.make("model", "convnet", width=6)
    derived = derive(teacher, GREY, how="depthwise")
    convolutions = [module for module in derived.model.modules() if isinstance(module, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size[0], c.groups) for c in convolutions] == [
        (1, 6, 3, 1),
        *((6, 6, 3, 6), (6, 12, 1, 1)),
        *((12, 12, 3, 12), (12, 24, 1, 1)),
        *((24, 24, 3, 24), (24, 48, 1, 1)),
    ]
    assert sum(c.weight.numel() for c in convolutions) == 9 * (1 * 6 + 6 + 12 + 24) + 6 * 12 + 12 * 24 + 24 * 48
    assert derived.edit.layers == ["stage2.conv1", "stage3.conv1", "stage4.conv1"]
    assert [(item.module, "first" in item.reason) for item in derived.kept] == [("stage1.conv1 (Conv2d)", True)]
    assert derived.origins["stage2.conv1.depthwise.weight"].how == "factorised"
    assert derived.origins["stage1.conv1.weight"].how == "copied"


def test_stride_padding_bias_and_taps_stay():
    teacher = nets.settled(nets.VGG(), nets.IMAGES)
    teacher.features[3] = nn.Conv2d(8, 8, 5, stride=2, padding=2, padding_mode="reflect")
    student = derive(teacher, nets.IMAGES, how="depthwise", taps=["features.3", "features.7"]).model
    pair = student.features[3]
    assert (pair.depthwise.stride, pair.depthwise.padding_mode, pair.depthwise.bias) == ((2, 2), "reflect", None)
    assert torch.equal(pair.pointwise.bias, teacher.features[3].bias)
    student.train()(nets.IMAGES).sum().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_a_convolution_that_is_separable_is_reproduced():
    teacher = kdx.make("model", "convnet", width=4, stages=2)
    window, mix = torch.randn(4, 3, 3), torch.randn(8, 4)
    with torch.no_grad():
        teacher.stage2.conv1.weight.copy_(torch.einsum("oc,cij->ocij", mix, window))
    nets.settled(teacher, GREY)
    derived = derive(teacher, GREY, how="depthwise")
    with torch.no_grad():
        torch.testing.assert_close(derived.model(GREY), teacher(GREY), rtol=1e-5, atol=1e-5)
    assert derived.origins["stage2.conv1.pointwise.weight"].error == pytest.approx(0.0, abs=1e-6)


def test_other_convolutions_are_met_in_the_least_squares():
    teacher = kdx.make("model", "convnet", width=4, stages=2)
    derived = derive(teacher, GREY, how="depthwise")
    pair, old = derived.model.stage2.conv1, teacher.stage2.conv1.weight.detach().double()
    new = pair.pointwise.weight.double() * pair.depthwise.weight.double().transpose(0, 1)  # [O, C, 3, 3]
    error = (old - new.detach()).norm() / old.norm()
    assert derived.origins["stage2.conv1.depthwise.weight"].error == pytest.approx(float(error), rel=1e-5)
    # at a minimum the residual is orthogonal to moving either factor
    residual = old - new.detach()
    against_window = (residual * pair.depthwise.weight.detach().double().transpose(0, 1)).sum((2, 3))
    against_mix = (residual * pair.pointwise.weight.detach().double()).sum(0)
    assert against_window.abs().max() < 1e-6
    assert against_mix.abs().max() < 1e-6
    assert 0.3 < error < 1


def test_a_budget_replaces_those_that_save_most_first():
    teacher = kdx.make("model", "convnet", width=6)
    assert derive(teacher, GREY, how="depthwise", params="90%").edit.layers == ["stage4.conv1"]
    assert derive(teacher, GREY, how="depthwise", params="30%").edit.layers == ["stage3.conv1", "stage4.conv1"]


def test_models_without_convolutions_to_replace_are_refused():
    with pytest.raises(StudentError, match=r"depthwise changes nothing about MLP .* no convolution with a window"):
        derive(kdx.make("model", "mlp"), GREY, how="depthwise")
    with pytest.raises(StudentError, match=r"changes nothing about ViT .*patches \(Conv2d\): the first convolution"):
        derive(kdx.make("model", "vit"), GREY, how="depthwise")
    with pytest.raises(StudentError, match="must have a Conv1d or Conv2d or Conv3d at 'fc'; there is Linear"):
        Depthwise(layers=["fc"]).build(kdx.make("model", "convnet"))
