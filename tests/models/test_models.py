"""Promises of all models: exact sizes, taps, gradients everywhere, seeds, clear errors."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdx.models import MLP, ConvNet, DepthwiseNet, ResNet, UNet, ViT

MODELS = [ConvNet, MLP, ResNet, DepthwiseNet, ViT]


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (ConvNet, 25_154),
        (lambda: ConvNet(24), 220_594),
        (lambda: ConvNet(8, stages=2, grid=7), 9_122),
        (lambda: ConvNet(10, stages=3), 9_640),
        (lambda: ConvNet(8, stages=3, depth=2, norm=False), 72 + 9 * (64 + 128 + 256 + 512 + 1024) + 112 + 330),
        (MLP, 50_890),
        (lambda: MLP((32, 16), input_shape=(3, 8, 8), num_classes=7), 192 * 32 + 32 + 32 * 16 + 16 + 16 * 7 + 7),
        (lambda: MLP(()), 7_850),
        (ResNet, 75_002),
        (lambda: ResNet(20, input_shape=(3, 32, 32)), 269_722),
        (lambda: ResNet(32, input_shape=(3, 32, 32)), 464_154),
        (lambda: ResNet(44, input_shape=(3, 32, 32)), 658_586),
        (lambda: ResNet(56, input_shape=(3, 32, 32)), 853_018),
        (lambda: ResNet(8, width=4), 1_184_714),
        (DepthwiseNet, 10_474),
        (ViT, 138_890),
        (lambda: ViT(distilled=True), 138_890 + 4 * 64 + 650),
        (lambda: UNet(16, num_classes=11), 242_955),
        (lambda: UNet(4, stages=3, num_classes=11), 3_771),
    ],
)
def test_parameter_counts_are_those_of_the_docstrings(model, count):
    assert parameters(model()) == count


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("input_shape", [(1, 28, 28), (1, 8, 8), (3, 32, 24)])
def test_every_parameter_and_the_input_get_a_gradient(model, input_shape):
    torch.manual_seed(0)
    net = model(num_classes=7, input_shape=input_shape)
    x = torch.randn(16, *input_shape, requires_grad=True)
    logits = net(x)
    assert logits.shape == (16, 7)
    F.cross_entropy(logits, torch.arange(16) % 7).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert x.grad.flatten(1).abs().amax(1).min() > 0


@pytest.mark.parametrize("model", MODELS)
def test_the_seed_decides_the_weights(model):
    def build(seed):
        torch.manual_seed(seed)
        return torch.cat([parameter.flatten() for parameter in model().parameters()])

    assert torch.equal(build(1), build(1))
    assert not torch.equal(build(1), build(2))


@pytest.mark.parametrize("model", MODELS)
def test_evaluation_does_not_depend_on_the_rest_of_the_batch(model):
    torch.manual_seed(0)
    net = model().eval()
    x = torch.randn(6, 1, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(net(x)[2:4], net(x[2:4]))


@pytest.mark.parametrize(
    ("model", "shapes"),
    [
        (
            ConvNet(8),
            {"stage1": (8, 14, 14), "stage2": (16, 7, 7), "stage3": (32, 3, 3), "stage4": (64, 3, 3), "avgpool": (64,)},
        ),
        (ConvNet(8, stages=2, grid=7), {"stage1": (8, 14, 14), "stage2": (16, 14, 14), "avgpool": (784,)}),
        (MLP((32, 16)), {"hidden1": (32,), "hidden2": (16,)}),
        (
            ResNet(14, width=2),
            {"conv1": (32, 28, 28), "layer1": (32, 28, 28), "layer2.1": (64, 14, 14), "layer3.1.conv2": (128, 7, 7)},
        ),
        (
            DepthwiseNet(16),
            {"stem": (16, 28, 28), "stage1.block2": (32, 14, 14), "stage2": (64, 7, 7), "avgpool": (64,)},
        ),
        (ViT(depth=2), {"blocks.0": (49, 64), "norm": (49, 64), "avgpool": (64,)}),
        (ViT(depth=2, distilled=True), {"blocks.0": (51, 64), "norm": (51, 64), "fc_distilled": (10,)}),
    ],
)
def test_the_named_taps_have_the_documented_shapes(model, shapes):
    seen = {}
    for name in [*shapes, "fc"]:
        model.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
    logits = model.eval()(torch.randn(2, 1, 28, 28))
    assert {name: tuple(seen[name].shape[1:]) for name in shapes} == shapes
    other = seen.get("fc_distilled", seen["fc"])
    assert torch.equal((seen["fc"] + other) / 2, logits)


@pytest.mark.parametrize("model", [lambda: ConvNet(4), lambda: ResNet(8), lambda: DepthwiseNet(4)])
@pytest.mark.parametrize("size", [(8, 8), (31, 17), (64, 40)])
def test_convolutional_models_take_other_sizes_than_stated(model, size):
    logits = model()(torch.randn(2, 1, *size))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


def test_the_grid_keeps_where_in_the_image_a_feature_was():
    torch.manual_seed(0)
    x = torch.zeros(1, 1, 28, 28)
    x[:, :, 8:16, 8:16] = 1
    moved = x.roll(8, dims=2)
    pooled, gridded = ConvNet(4, stages=2).eval(), ConvNet(4, stages=2, grid=7).eval()
    with torch.no_grad():
        torch.testing.assert_close(pooled(x), pooled(moved))
        assert (gridded(x) - gridded(moved)).abs().max() > 1e-3


def test_pooling_before_the_norm_is_pooling_after_it():
    torch.manual_seed(0)
    net = ConvNet(4, stages=2).eval()
    stage = net.stage1
    stage.norm1.running_mean.normal_()
    stage.norm1.bias.data.normal_()
    x = torch.randn(3, 1, 9, 9)
    usual = F.max_pool2d(F.relu(stage.norm1(stage.conv1(x))), 2)
    torch.testing.assert_close(stage(x), usual)


def test_the_residual_block_adds_its_zero_padded_input():
    torch.manual_seed(0)
    net = ResNet(8).eval()
    block = net.layer2[0]
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 16, 7, 7).abs()
    out = block(x)
    assert out.shape == (2, 32, 4, 4)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_the_mean_token_and_positions_make_the_transformer_see_where_patches_are():
    torch.manual_seed(0)
    net = ViT(dim=16, depth=1).eval()
    x = torch.randn(1, 1, 28, 28)
    moved = x.roll(4, dims=2)
    assert (net(x) - net(moved)).abs().max() > 1e-4
    nn.init.zeros_(net.position)
    torch.testing.assert_close(net(x), net(moved))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ConvNet(0), "width must be 1 or more; got 0"),
        (lambda: ConvNet(stages=5, input_shape=(1, 8, 8)), r"at least 16 pixels.*got \(1, 8, 8\)"),
        (lambda: ConvNet(input_shape=(28, 28)), r"input_shape must be \(channels, height, width\).*got \(28, 28\)"),
        (lambda: ConvNet(grid=0), "grid must be 1 or more; got 0"),
        (lambda: ConvNet(num_classes=0), "num_classes must be 1 or more; got 0"),
        (lambda: MLP((8, 0)), "hidden must be 1 or more; got 0"),
        (lambda: MLP(dropout=1.0), "dropout.*got 1.0"),
        (lambda: MLP()(torch.zeros(2, 1, 8, 8)), r"inputs must be \[N, 1, 28, 28\].*got \[2, 1, 8, 8\]"),
        (lambda: ResNet(18), "depth must be 6 n \\+ 2.*got 18"),
        (lambda: ResNet(8, width=0), "width must be 1 or more"),
        (lambda: DepthwiseNet(depth=0), "depth must be 1 or more"),
        (lambda: UNet(stages=4, stride=2, input_shape=(1, 14, 14)), "at least 16 pixels"),
        (lambda: UNet(stride=0), "stride must be 1 or more; got 0"),
        (lambda: ViT(30), "dim must be a multiple of heads; got dim=30, heads=4"),
        (lambda: ViT(patch=5), "patch must divide.*patch=5"),
        (lambda: ViT(dropout=-0.1), "dropout.*got -0.1"),
        (lambda: ViT()(torch.zeros(2, 1, 32, 32)), r"images must be \[N, 1, 28, 28\].*got \[2, 1, 32, 32\]"),
    ],
)
def test_errors_name_the_argument_and_the_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(56, 56), (19, 42)])
def test_the_u_net_classifies_every_pixel_at_the_resolution_of_its_input(stride, size):
    torch.manual_seed(0)
    net = UNet(4, stages=3, depth=2, stride=stride, num_classes=11)
    x = torch.randn(2, 1, *size, requires_grad=True)
    logits = net(x)
    assert logits.shape == (2, 11, *size)
    (logits * torch.randn_like(logits)).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    assert x.grad.flatten(1).abs().amax(1).min() > 0


def test_the_u_nets_taps_have_the_documented_shapes():
    seen = {}
    net = UNet(4, stages=3, stride=2, num_classes=11)
    for name, module in net.named_children():
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: tuple(out.shape[1:])}))
    net(torch.randn(2, 1, 56, 56))
    assert seen.pop("pool")
    assert seen == {
        "down1": (4, 28, 28),
        "down2": (8, 14, 14),
        "down3": (16, 7, 7),
        "up2": (8, 14, 14),
        "up1": (4, 28, 28),
        "fc": (11, 28, 28),
    }


def test_the_decoder_sees_the_encoders_stages():
    """Without what comes from below, a pixel still depends on those beside it alone."""
    torch.manual_seed(0)
    net = UNet(4, stages=2, num_classes=3).eval()
    net.up1[0].weight.data[:, 4:] = 0  # the channels from below
    x = torch.randn(1, 1, 16, 16, requires_grad=True)
    net(x)[0, :, 8, 8].sum().backward()
    rows, columns = x.grad[0, 0].nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 10, 6, 10)


@pytest.mark.parametrize("model", [*MODELS, lambda: UNet(stride=2)])
def test_models_compile_without_graph_breaks(model):
    torch.manual_seed(0)
    net = model().eval()
    x = torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        compiled = torch.compile(net, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), net(x))
