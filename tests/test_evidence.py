"""Layouts of tapped tensors, as the modules say that gave them."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.nn.modules.module import _global_forward_hooks

from kdx.capture import Taps
from kdx.layout import Layout, UnknownLayout
from kdx.models import ResNet, ViT


def layouts(model, inputs, *taps, output=lambda result: torch.zeros(1, 1)):
    return Taps(model, taps, output=output)(inputs).layouts


def axes(model, inputs, *taps):
    return [getattr(layout, "axes", None) for layout in layouts(model, inputs, *taps).values()]


class Does(nn.Module):
    """A module that says nothing, as a user's own or a subclass."""

    def __init__(self, function, *inner):
        super().__init__()
        self.inner = nn.ModuleList(inner)
        self.function = function

    def forward(self, x):
        return self.function(x, *self.inner)


class ChannelsFirstNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def residual(x, *layers):
    out = x
    for layer in layers:
        out = layer(out)
    return x + out


IMAGE, SERIES, VIDEO, TOKENS = (torch.randn(2, 3, *size) for size in ((6, 5), (7,), (4, 6, 5), (9,)))
TOKENS = torch.randn(2, 9, 8)


@pytest.mark.parametrize(
    ("module", "inputs", "expected"),
    [
        (nn.Conv1d(3, 4, 1), SERIES, "ncl"),
        (nn.Conv2d(3, 4, 1), IMAGE, "nchw"),
        (nn.ConvTranspose3d(3, 4, 1), VIDEO, "ncdhw"),
        (nn.BatchNorm1d(3), SERIES, "ncl"),
        (nn.SyncBatchNorm(3).eval(), IMAGE, "nchw"),
        (nn.GroupNorm(1, 3), VIDEO, "ncdhw"),
        (nn.MaxPool2d(2), IMAGE, "nchw"),
        (nn.AdaptiveAvgPool3d(2), VIDEO, "ncdhw"),
        (nn.LayerNorm(8), TOKENS, "nlc"),
        (nn.LayerNorm(5), IMAGE, "nhwc"),
        (nn.RMSNorm(5), VIDEO, "ndhwc"),
        (nn.LayerNorm([6, 5]), IMAGE, None),
        (nn.Linear(8, 4), TOKENS, "nlc"),
        (nn.Embedding(9, 4), torch.zeros(2, 5, dtype=torch.int64), "nlc"),
        (nn.TransformerEncoderLayer(8, 2, 4, batch_first=True), TOKENS, "nlc"),
        (nn.TransformerEncoderLayer(8, 2, 4), TOKENS, "lnc"),
        (nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 4, batch_first=True), 2), TOKENS, "nlc"),
        (nn.GRU(8, 4, batch_first=True), TOKENS, "nlc"),
        (nn.LSTM(8, 4), TOKENS, "lnc"),
        (nn.Conv2d(3, 4, 1), IMAGE[0], None),  # a sample without a batch
        (ChannelsFirstNorm(3), IMAGE, None),
        (type("MyConv", (nn.Conv2d,), {})(3, 4, 1), IMAGE, None),
        (nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 4, 1)), SERIES, "ncl"),
        (nn.ReLU(), IMAGE, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_the_exact_type_of_a_module_says_its_layout(module, inputs, expected):
    assert axes(nn.Sequential(module), inputs, "0") == [expected]


def test_what_works_on_elements_and_containers_pass_on_the_layout_of_the_very_tensor():
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True)), nn.Dropout(), nn.GELU(), nn.Identity()
    )
    assert axes(net, IMAGE, "0", "1", "2", "3", "1:input") == ["nchw"] * 5


def test_a_block_says_what_the_modules_inside_it_say_that_gave_its_shape():
    block = Does(residual, nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    net = nn.Sequential(nn.Conv2d(3, 4, 1), block, nn.ReLU())
    assert axes(net, IMAGE, "1", "1:input", "2:input", "2") == ["nchw"] * 4


def test_a_block_that_permutes_gives_its_outer_layout():
    def convnext(x, conv, norm, up, down):
        return x + down(torch.nn.functional.gelu(up(norm(conv(x).permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)

    def swin(x, norm, linear):  # [N, H, W, C], with windows inside
        return x + linear(norm(x).unflatten(1, (3, 2)).flatten(0, 1)).view(x.shape)

    block = Does(convnext, nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.LayerNorm(4), nn.Linear(4, 16), nn.Linear(16, 4))
    assert axes(nn.Sequential(nn.Conv2d(3, 4, 1), block), IMAGE, "1") == ["nchw"]
    swin_block = Does(swin, nn.LayerNorm(5), nn.Linear(5, 5))
    assert axes(nn.Sequential(swin_block), IMAGE.repeat(1, 2, 1, 1), "0") == ["nhwc"]


def test_where_all_sides_are_equal_modules_that_disagree_and_permuted_tensors_leave_it_unknown():
    conv, linear = nn.Conv2d(6, 6, 1), nn.Linear(6, 6)
    cube = torch.randn(2, 6, 6, 6)
    mixed = Does(lambda x, conv, linear: linear(conv(x).permute(0, 2, 3, 1)) + 0, conv, linear)
    permuted = Does(lambda x, conv: conv(x).permute(0, 2, 3, 1), conv)
    found = [axes(nn.Sequential(block), cube, "0") for block in (mixed, permuted, Does(residual, conv))]
    assert found == [[None], [None], ["nchw"]]
    late = Does(residual, nn.Conv2d(6, 6, 1)).to(memory_format=torch.channels_last)
    assert axes(nn.Sequential(late), cube.to(memory_format=torch.channels_last), "0") == ["nchw"]


def test_a_patch_embedding_is_not_taken_for_channels_first():
    def embed(x, conv):
        return conv(x).flatten(2).transpose(1, 2)

    bare = nn.Sequential(Does(embed, nn.Conv2d(3, 30, 1)), Does(lambda x: x * 1))
    assert axes(bare, IMAGE, "0") == [None]  # 30 channels, 30 patches: the convolution gave another shape
    square = nn.Sequential(Does(lambda x, conv: conv(x).transpose(1, 2), nn.Conv1d(3, 7, 1)), Does(lambda x: x * 1))
    assert axes(square, SERIES, "0") == [None]
    normed = nn.Sequential(Does(embed, nn.Conv2d(3, 8, 1)), nn.LayerNorm(8))
    assert axes(normed, IMAGE, "0") == ["nlc"]  # the norm takes the very tensor


def test_what_takes_the_very_tensor_speaks_for_a_concatenation():
    dense = Does(lambda x, conv: torch.cat([x, conv(x)], 1), nn.Conv2d(3, 4, 1))
    assert axes(nn.Sequential(dense, nn.BatchNorm2d(7)), IMAGE, "0") == ["nchw"]
    assert axes(nn.Sequential(dense), IMAGE, "0") == [None]


def test_a_linear_layer_over_time_does_not_make_channels_of_time():
    net = nn.Sequential(Does(residual, nn.Conv1d(3, 3, 1)), nn.Linear(7, 2))
    assert axes(net, SERIES, "0") == ["ncl"]


def test_items_are_known_only_where_the_type_says_them():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    net = Does(lambda x, attention: attention(x, x, x), attention)
    assert axes(net, TOKENS, "inner.0", "inner.0[0]", "inner.0[1]") == ["nlc", "nlc", None]
    lstm = nn.LSTM(8, 4, batch_first=True)
    found = layouts(Does(lambda x, lstm: (lstm(x)[1], lstm(x))[1], lstm), TOKENS, "inner.0[0]")
    assert found == {"inner.0[0]": Layout("nlc")}


def test_modules_inside_one_that_puts_the_batch_second_leave_even_the_batch_open():
    def clip(x, norm, attention, linear, last):
        y = norm(x)
        y = x + linear(attention(y, y, y)[0])
        return y + last(y)

    parts = nn.LayerNorm(8), nn.MultiheadAttention(8, 2), nn.Linear(8, 8), nn.Linear(8, 8)
    found = layouts(nn.Sequential(Does(clip, *parts)), TOKENS, "0", *(f"0.inner.{n}" for n in range(4)))
    assert [found.pop(f"0.inner.{n}") for n in range(3)] == [found.pop("0")] * 3 == [Layout("lnc")] * 3
    assert found == {"0.inner.3": UnknownLayout("Linear", batch_first=False)}


def test_two_axes_are_samples_and_channels_whatever_gave_them():
    assert axes(nn.Sequential(Does(lambda x: x.flatten(1))), IMAGE, "0") == ["nc"]


def test_a_module_that_declares_its_layout_speaks_for_the_modules_inside_it_too():
    net = pickle.loads(pickle.dumps(copy.deepcopy(ViT(dim=8, depth=2, heads=2))))
    told = Layout("nlc", grid=(7, 7), class_token=0, registers=0)
    found = layouts(net, torch.zeros(2, 1, 28, 28), "blocks", "blocks.0", "blocks.1.norm2", "norm", "avgpool:input")
    assert set(found.values()) == {told}


def test_every_module_of_the_convolutional_networks_is_known():
    net = ResNet(8)
    found = axes(net, torch.zeros(2, 1, 28, 28), "layer*", "layer*.*", "layer2.0:input", "avgpool:input")
    assert set(found) == {"nchw"}


def test_evidence_is_taken_in_the_first_pass_alone_and_holds_no_tensor():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    taps = Taps(net, ("0",), output=lambda result: result.flatten(1))
    captured = taps(IMAGE)
    given = weakref.ref(captured["0"])
    assert captured.detach().layouts == captured.layouts == {"0": Layout("nchw")}
    assert not _global_forward_hooks
    del captured
    gc.collect()
    assert given() is None
    assert taps(IMAGE).layouts == {"0": Layout("nchw")}
    taps.add(["1"])
    assert taps(IMAGE).layouts == {"0": Layout("nchw"), "1": Layout("nchw")}


def test_the_hook_is_gone_when_the_model_fails():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1))
    with pytest.raises(RuntimeError):
        Taps(net, ("0",))(IMAGE)
    assert not _global_forward_hooks
