"""Stages are found in CNNs and transformers of many makes, and nothing about the model changes."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from kdx.models import MLP, ConvNet, DepthwiseNet, ResNet, ViT
from kdx.schemes.parts.depths import find_stages

IMAGES = torch.zeros(2, 1, 32, 32)
TOKENS = {"input_ids": torch.zeros(2, 9, dtype=torch.int64)}


class Vgg(nn.Module):
    """Layers in one row without blocks, behind a name, as in torchvision."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 4), (4, 6), (6, 8)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(4)
        self.classifier = nn.Linear(8 * 16, 10)

    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class Dense(nn.Module):
    """A stem with pooling, blocks and transitions, as in torchvision's DenseNet and ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.maxpool = nn.MaxPool2d(2)
        self.block1 = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU())
        self.transition1 = nn.Sequential(nn.Conv2d(8, 4, 1), nn.AvgPool2d(2))
        self.block2 = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = self.transition1(self.block1(self.maxpool(self.conv(x))))
        return self.fc(self.pool(self.block2(x)).flatten(1))


def hugging_face(kind: str, **options) -> nn.Module:
    config = getattr(transformers, f"{kind}Config")(num_labels=10, **options)
    suffix = "SequenceClassification" if kind == "Bert" else "ImageClassification"
    return getattr(transformers, f"{kind}For{suffix}")(config)


SIZES = {"num_channels": 1, "hidden_sizes": [4, 8, 12], "depths": [1, 2, 1]}
HEADS = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize(
    ("model", "inputs", "expected"),
    [
        (lambda: ConvNet(width=4), IMAGES, ["stage1", "stage2", "stage4"]),
        (lambda: ConvNet(width=4, stages=2, grid=7), IMAGES, ["stage1", "stage2"]),
        (lambda: ResNet(14), IMAGES, ["layer1", "layer2", "layer3"]),
        (DepthwiseNet, IMAGES, ["stem", "stage1", "stage2"]),
        (Vgg, IMAGES, ["features.2", "features.6", "features.10"]),
        (Dense, IMAGES, ["block1", "block2"]),
        (lambda: ViT(dim=8, heads=2, input_shape=(1, 32, 32)), IMAGES, [f"blocks.{k}" for k in range(4)]),
        (
            lambda: hugging_face("ResNet", embedding_size=4, layer_type="basic", **SIZES),
            IMAGES,
            [f"resnet.encoder.stages.{k}" for k in range(3)],
        ),
        (
            lambda: hugging_face("ConvNext", patch_size=2, num_stages=3, **SIZES),
            IMAGES,
            [f"convnext.encoder.stages.{k}" for k in range(3)],
        ),
        (
            lambda: hugging_face("ViT", num_hidden_layers=6, image_size=32, patch_size=8, num_channels=1, **HEADS),
            IMAGES,
            [f"vit.layers.{k}" for k in (0, 2, 3, 5)],
        ),
        (
            lambda: hugging_face("Bert", num_hidden_layers=3, vocab_size=20, **HEADS),
            TOKENS,
            [f"bert.encoder.layer.{k}" for k in range(3)],
        ),
    ],
    ids=[
        "convnet",
        "two stages",
        "resnet",
        "depthwise",
        "vgg",
        "densenet",
        "vit",
        "hf-resnet",
        "convnext",
        "hf-vit",
        "bert",
    ],
)
def test_stages_are_found_from_shallow_to_deep(model, inputs, expected) -> None:
    net = model().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert list(find_stages(net, inputs)) == expected
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())
    for name, value in net.state_dict().items():
        assert value.equal(before[name]), name


@pytest.mark.parametrize(
    ("model", "seen"), [(lambda: MLP(input_shape=(1, 32, 32)), "none"), (lambda: ConvNet(width=4, stages=1), "only")]
)
def test_a_network_without_stages_is_told_to_name_them(model, seen) -> None:
    with pytest.raises(ValueError, match=rf"stages: found {seen}.*Name them: stages="):
        find_stages(model(), IMAGES)
