"""A small vision transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdx.layout import Layout
from kdx.models.shape import check_positive, check_shape

__all__ = ["ViT"]


class ViT(nn.Module):
    """A pre-norm transformer encoder on image patches (Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929).

    Patches are embedded by one convolution, learned positions are added, and the mean over the patches after the last
    norm is classified (no class token).

    Taps: ``blocks.0`` .. ``[N, patches, dim]``, ``norm`` ``[N, patches, dim]``, ``avgpool`` ``[N, dim]`` (the
    embedding), ``fc`` (the logits). On 1x28x28 images with ten classes ``ViT()`` has 138,890 parameters.

    With ``distilled`` a class token and a distillation token come before the patches, each with a classifier of its
    own, ``fc`` and ``fc_distilled``, and the logits are the mean of both (DeiT, Touvron et al. 2021,
    https://arxiv.org/abs/2012.12877). The labels then teach the one and a teacher the other: the scheme ``offline``
    with ``task_tap: fc``, and knowledge with ``student: fc_distilled``.

    Args:
        dim: size of a token, a multiple of ``heads``.
        depth: number of encoder blocks.
        heads: attention heads.
        patch: height and width of a patch in pixels; the image's height and width must be multiples of it.
        mlp_ratio: units of the hidden layer in a block, as a multiple of ``dim``.
        dropout: probability that a unit is dropped in training.
        distilled: with a class token and a distillation token, see above; there is no tap ``avgpool`` then.
        num_classes: number of logits.
        input_shape: channels, height and width of an image, fixed from then on.

    Raises:
        ValueError: the sizes do not fit one another.

    Example:
        >>> import torch
        >>> from kdx.models.vit import ViT
        >>> ViT(dim=32, depth=2)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        dim: int = 64,
        *,
        depth: int = 4,
        heads: int = 4,
        patch: int = 4,
        mlp_ratio: int = 2,
        dropout: float = 0.0,
        distilled: bool = False,
        num_classes: int = 10,
        input_shape: tuple[int, int, int] = (1, 28, 28),
    ) -> None:
        super().__init__()
        check_positive(dim=dim, depth=depth, heads=heads, patch=patch, mlp_ratio=mlp_ratio)
        check_shape(input_shape, num_classes)
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads; got dim={dim}, heads={heads}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be a probability, 0 <= dropout < 1; got {dropout}")
        channels, height, width = input_shape
        if height % patch or width % patch:
            raise ValueError(
                f"patch must divide the height and width of the images; got patch={patch}, input_shape={input_shape}"
            )
        self.input_shape = tuple(input_shape)
        self.patches = nn.Conv2d(channels, dim, patch, stride=patch)
        grid = height // patch, width // patch
        self.distilled = distilled
        before = 2 if distilled else 0
        self.kdx_layout = Layout("nlc", grid=grid, class_token=before, registers=0)
        self.position = nn.Parameter(torch.empty(1, grid[0] * grid[1] + before, dim))
        nn.init.trunc_normal_(self.position, std=0.02)
        if distilled:
            self.tokens = nn.Parameter(torch.empty(1, 2, dim))  # of the class, of the distillation
            nn.init.trunc_normal_(self.tokens, std=0.02)
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    dim, heads, mlp_ratio * dim, dropout, activation="gelu", batch_first=True, norm_first=True
                )
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(dim)
        if not distilled:
            self.avgpool = MeanToken()
        self.fc = nn.Linear(dim, num_classes)
        if distilled:
            self.fc_distilled = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of images ``[N, C, H, W]`` of the stated shape."""
        if x.shape[1:] != self.input_shape:
            raise ValueError(
                f"images must be [N, {', '.join(map(str, self.input_shape))}], as input_shape says; got {list(x.shape)}"
            )
        tokens = self.patches(x).flatten(2).transpose(1, 2)  # [N, L, dim]
        if self.distilled:
            tokens = torch.cat([self.tokens.expand(len(tokens), -1, -1), tokens], 1)
        tokens = self.norm(self.blocks(tokens + self.position))
        logits: Tensor
        if self.distilled:
            logits = (self.fc(tokens[:, 0]) + self.fc_distilled(tokens[:, 1])) / 2
        else:
            logits = self.fc(self.avgpool(tokens))
        return logits


class MeanToken(nn.Module):
    """The mean over tokens, ``[N, L, D]`` to ``[N, D]``."""

    def forward(self, tokens: Tensor) -> Tensor:
        """The mean of each row's tokens."""
        return tokens.mean(1)
