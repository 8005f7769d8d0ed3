"""Small networks with windows, blocks and channels that can be chosen."""

import torch
from torch import nn


class Wide(nn.Module):
    """A stem with a 5x5 window, two residual blocks, a classifier; images are ``[N, 1, 8, 8]``."""

    def __init__(self, width: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 5, padding=2, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(Residual(width), Residual(width))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, x):
        return self.fc(self.pool(self.blocks(torch.relu(self.norm(self.stem(x))))))


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(2 * width)
        self.conv2 = nn.Conv2d(2 * width, width, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(torch.relu(self.norm1(self.conv1(x))))


class Stacked(nn.Module):
    """Gives the outputs of all its blocks, one behind the other: fewer blocks give fewer outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x):
        found = []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        return torch.cat(found, 1)


def images(rows: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def seeded(make, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make()
