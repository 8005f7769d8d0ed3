"""Networks that kdx has not seen, written as torchvision, timm and others write theirs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, stride=1, groups=1):
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)))))
        out += shortcut
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self, width=8, groups=1):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        first = Bottleneck(width, width, groups=groups)
        self.layer1 = nn.Sequential(first, *(Bottleneck(4 * width, width, groups=groups) for _ in range(2)))
        self.layer2 = nn.Sequential(
            Bottleneck(4 * width, 2 * width, 2, groups=groups), Bottleneck(8 * width, 2 * width, groups=groups)
        )
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8 * width, 5)

    def forward(self, x):
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        return self.fc(torch.flatten(self.avgpool(self.layer2(self.layer1(x))), 1))


class VGG(nn.Module):
    """A convolution's channels end up as runs of sixteen columns of the first linear layer."""

    def __init__(self):
        super().__init__()
        layers, channels = [], 3
        for width in (8, 8, 0, 16, 16, 0):
            if width:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(True)]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((4, 4))
        self.classifier = nn.Sequential(
            nn.Linear(256, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 32), nn.ReLU(True), nn.Linear(32, 5)
        )

    def forward(self, x):
        x = self.avgpool(self.features(x))
        return self.classifier(x.view(x.size(0), -1))


class DenseNet(nn.Module):
    """Every layer sees all before it, concatenated."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, 6, 3, padding=1)) for c in (8, 14, 20)
        )
        self.norm = nn.BatchNorm2d(26)
        self.fc = nn.Linear(26, 5)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.fc(F.adaptive_avg_pool2d(F.relu(self.norm(x)), 1).flatten(1))


class Squeeze(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.down = nn.Conv2d(channels, channels // 4, 1)
        self.up = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.up(F.silu(self.down(x.mean((2, 3), keepdim=True)))))


class Inverted(nn.Module):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        hidden = 4 * inputs
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(True),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.Hardswish(),
            Squeeze(hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x):
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNet(nn.Module):
    """Depth-wise convolutions, squeeze and excitation, channels averaged by hand."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.blocks = nn.Sequential(Inverted(8, 8), Inverted(8, 8), Inverted(8, 12, 2), Inverted(12, 12))
        self.fc = nn.Linear(12, 5)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean([2, 3]))


class TextEncoder(nn.Module):
    """PyTorch's own encoder on tokens, with a padding mask and the positions cut to the length."""

    def __init__(self, dim=16, heads=4, depth=3):
        super().__init__()
        self.embedding = nn.Embedding(50, dim, padding_idx=0)
        self.position = nn.Parameter(torch.randn(1, 12, dim))
        layer = nn.TransformerEncoderLayer(dim, heads, 2 * dim, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.fc = nn.Linear(dim, 5)

    def forward(self, ids, mask=None):
        tokens = self.embedding(ids) + self.position[:, : ids.shape[1]]
        return self.fc(self.encoder(tokens, src_key_padding_mask=mask)[:, 0])


class OwnAttention(nn.Module):
    """Attention as timm writes it: the heads' size comes from the tokens, the rows of ``qkv`` do not."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        n, length, dim = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.transpose(-2, -1) * (dim // self.heads) ** -0.5).softmax(-1)
        return self.proj((scores @ v).transpose(1, 2).reshape(n, length, dim))


class OwnBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = OwnAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class OwnViT(nn.Module):
    def __init__(self, dim=16, heads=4, depth=3):
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 8, 8)
        self.cls = nn.Parameter(torch.randn(1, 1, dim))
        self.position = nn.Parameter(torch.randn(1, 17, dim))
        self.blocks = nn.Sequential(*(OwnBlock(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.into = nn.Linear(8, 16)
        self.rnn = nn.LSTM(16, 16, batch_first=True)
        self.out = nn.Linear(16, 5)

    def forward(self, x):
        return self.out(self.rnn(torch.relu(self.into(x)))[0][:, -1])


IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(1, 50, (4, 10), generator=torch.Generator().manual_seed(0))
MASK = torch.arange(10).expand(4, 10) >= 8


def settled(model, inputs):
    """The model after a few batches in training mode, so that its running statistics are not those of a new one."""
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    return model.eval()
