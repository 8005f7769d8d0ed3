"""The convolutional net for series: sizes, taps, gradients, errors."""

import pytest
import torch

from kdx.models import ConvNet1d


@pytest.mark.parametrize(("options", "count"), [({"width": 16, "stages": 4}, 57_395), ({"width": 4, "stages": 2}, 399)])
def test_parameter_counts_are_those_of_the_docstring(options, count):
    net = ConvNet1d(**options, num_classes=3, input_shape=(1, 128))
    assert sum(parameter.numel() for parameter in net.parameters()) == count


@pytest.mark.parametrize("shape", [(1, 128), (3, 50)])
def test_every_parameter_and_every_input_get_a_gradient(shape):
    torch.manual_seed(0)
    net = ConvNet1d(4, num_classes=2, input_shape=shape)
    x = torch.randn(16, *shape, requires_grad=True)
    (net(x) * torch.randn(16, 2)).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in net.parameters())
    assert x.grad.flatten(1).abs().amax(1).min() > 0


def test_the_taps_have_the_documented_shapes():
    seen = {}
    net = ConvNet1d(4, stages=2, grid=8, num_classes=3, input_shape=(1, 50)).eval()
    for name, module in net.named_children():
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: tuple(out.shape[1:])}))
    x = torch.randn(5, 1, 50)
    out = net(x)
    assert seen == {"stage1": (4, 25), "stage2": (8, 12), "avgpool": (64,), "fc": (3,)}
    torch.testing.assert_close(net(x[2:4]), out[2:4])
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), out)
    assert net(torch.randn(2, 1, 77)).shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width must be 1 or more; got 0"),
        ({"kernel": 4}, "kernel must be odd.*got 4"),
        ({"input_shape": (1, 28, 28)}, r"input_shape must be \(channels, length\).*got \(1, 28, 28\)"),
        ({"stages": 4, "input_shape": (1, 15)}, r"at least 16 values long.*got \(1, 15\)"),
        ({"num_classes": 0}, "num_classes must be 1 or more; got 0"),
    ],
)
def test_errors_name_the_argument_and_the_value(options, message):
    with pytest.raises(ValueError, match=message):
        ConvNet1d(**options)
