"""The layers of two models listed, compared and drawn."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from kdx.analysis.layers import compare_layers, list_layers


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.norm(self.conv(x)))


class Net(nn.Module):
    """Two blocks, the second run at half size; gives a mapping as transformers do."""

    def __init__(self, width: int, *, mapping: bool = False) -> None:
        super().__init__()
        self.stem = Block(1, width)
        self.pool = nn.MaxPool2d(2)
        self.body = nn.ModuleList([Block(width, width), Block(width, 2 * width)])
        self.fc = nn.Linear(2 * width, 3)
        self.mapping = mapping

    def forward(self, x):
        x = self.pool(self.stem(x))
        for block in self.body:
            x = block(x)
        logits = self.fc(x.mean((2, 3)))
        return {"scores": logits} if self.mapping else logits


def test_layers_have_the_shapes_parameters_and_operations_one_computes_by_hand():
    layers = {layer.name: layer for layer in list_layers(Net(4), torch.randn(5, 1, 6, 6))}
    # BatchNorm is overwritten in place by the ReLU, which is also the block's output: the block stands for them
    assert list(layers) == ["stem.conv", "stem", "pool", "body.0.conv", "body.0", "body.1.conv", "body.1", "fc"]
    assert layers["stem"].shape == (4, 6, 6)
    assert layers["pool"].shape == (4, 3, 3)
    assert layers["body.1"].parameters == 4 * 8 * 9 + 16
    assert layers["stem"].flops == layers["stem.conv"].flops == 2 * 36 * 4 * 9
    assert layers["body.0"].flops == 2 * 9 * 16 * 9
    assert layers["fc"].flops == 2 * 8 * 3
    total = 2 * (36 * 4 * 9 + 9 * 16 * 9 + 9 * 32 * 9 + 8 * 3)
    assert layers["stem"].depth == layers["pool"].depth == pytest.approx(2 * 36 * 4 * 9 / total)
    assert layers["fc"].depth == 1
    assert [layer.order for layer in layers.values()] == list(range(8))


def test_dropout_and_identities_do_not_stand_for_what_they_hand_on():
    net = nn.Sequential(
        nn.Linear(3, 4), nn.Dropout(0.5), nn.Identity(), nn.ReLU(), nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.1))
    )
    assert [layer.name for layer in list_layers(net, torch.randn(5, 3))] == ["0", "3", "4"]


def test_listing_changes_nothing_about_the_model():
    net = Net(4).train()
    net.stem.eval()
    before = copy.deepcopy(net.state_dict())
    list_layers(net, torch.randn(5, 1, 6, 6))
    assert net.training
    assert not net.stem.norm.training
    assert net.body[0].norm.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


@pytest.fixture(scope="module")
def comparison():
    torch.manual_seed(0)
    teacher = Net(6, mapping=True)
    student = copy.deepcopy(teacher)
    student.body = nn.ModuleList([student.body[0], Block(6, 12)])
    return compare_layers(teacher, student, [torch.randn(16, 1, 6, 6), (torch.randn(12, 1, 6, 6), torch.zeros(12))])


def test_layers_that_are_the_same_have_cka_one_and_are_paired(comparison):
    names = [layer.name for layer in comparison.student]
    for same in ("stem", "pool", "body.0"):
        i = names.index(same)
        assert comparison.cka[i, i].item() == pytest.approx(1, abs=1e-5)
    assert dict(comparison.pairs["cka"])[names.index("body.0")] == names.index("body.0")
    assert all(i == j for i, j in comparison.pairs["uniform"])
    by_depth = dict(comparison.pairs["relative"])
    assert by_depth[names.index("fc")] == names.index("fc")
    assert by_depth[names.index("stem")] == names.index("pool")  # as deep in operations, of equals the later


def test_the_table_and_the_json_hold_every_layer_and_proposal(comparison):
    text = comparison.table()
    for layer in (*comparison.student, *comparison.teacher):
        assert layer.name in text
    assert "12x3x3" in text
    values = json.loads(json.dumps(comparison.as_dict()))
    assert values["pairs"]["uniform"][0] == ["stem.conv", "stem.conv"]
    assert len(values["cka"]) == len(values["student"]) == 8


def test_the_heat_map_is_a_png_of_the_matrix(comparison, tmp_path):
    comparison.draw(tmp_path / "cka.png")
    data = (tmp_path / "cka.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    from matplotlib.image import imread

    pixels = imread(tmp_path / "cka.png")
    assert min(pixels.shape[:2]) > 300
    assert pixels[..., :3].std() > 0.1


def test_deeply_nested_models_are_cut_to_their_outer_modules():
    comparison = compare_layers(Net(4), Net(2), [torch.randn(8, 1, 6, 6)], max_layers=5)
    assert [layer.name for layer in comparison.teacher] == ["stem", "pool", "fc"]


def test_a_transformer_with_tokens_is_compared_with_a_convolutional_net():
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(1, 8, 3, stride=3)
            self.encoder = encoder
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.encoder(self.patch(x).flatten(2).mT).mean(1))

    comparison = compare_layers(Tokens(), Net(4), [torch.randn(8, 1, 6, 6)])
    assert {"patch", "encoder", "head"} <= {layer.name for layer in comparison.teacher}
    assert torch.isfinite(comparison.cka).all()


def test_too_little_data_is_refused():
    with pytest.raises(ValueError, match="batches is empty"):
        compare_layers(Net(4), Net(2), [])
    with pytest.raises(ValueError, match="at least 4 samples, got 2"):
        compare_layers(Net(4), Net(2), [torch.randn(2, 1, 6, 6)])
