"""A small transformer encoder for token ids."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdx.models.shape import check_positive, check_tokens
from kdx.models.token_pooling import MaskedMean

__all__ = ["TokenTransformer"]


class TokenTransformer(nn.Module):
    """A pre-norm transformer encoder (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762) on token ids.

    Learned positions are added to the tokens' vectors. Padding is neither attended to nor part of a mean. A row is
    classified by the mean of its tokens, or every token by itself (``per_token``).

    Taps: ``embedding`` ``[N, L, dim]``, ``blocks.0`` .. ``[N, L, dim]``, ``norm`` ``[N, L, dim]``, ``pooled``
    ``[N, dim]`` (not with ``per_token``), ``fc`` (the logits).

    Args:
        dim: size of a token, a multiple of ``heads``.
        depth: number of encoder blocks.
        heads: attention heads.
        mlp_ratio: units of the hidden layer in a block, as a multiple of ``dim``.
        dropout: probability that a unit is dropped in training.
        per_token: gives logits of every token, ``[N, L, num_classes]``, in the place of those of the row.
        vocabulary: number of token ids, as the data set's attribute of this name says.
        padding: the id of the padding.
        num_classes: number of outputs.
        input_shape: ``(L,)``, tokens per row; shorter rows work too.

    Raises:
        ValueError: the sizes do not fit one another, or a row is longer than stated.

    Example:
        >>> import torch
        >>> from kdx.models.token_transformer import TokenTransformer
        >>> tagger = TokenTransformer(32, depth=2, per_token=True, vocabulary=40, num_classes=3, input_shape=(14,))
        >>> tagger(torch.ones(2, 14, dtype=torch.int64)).shape
        torch.Size([2, 14, 3])
    """

    def __init__(
        self,
        dim: int = 64,
        *,
        depth: int = 2,
        heads: int = 4,
        mlp_ratio: int = 2,
        dropout: float = 0.0,
        per_token: bool = False,
        vocabulary: int,
        padding: int = 0,
        num_classes: int = 2,
        input_shape: tuple[int, ...] = (64,),
    ) -> None:
        super().__init__()
        check_positive(dim=dim, depth=depth, heads=heads, mlp_ratio=mlp_ratio)
        check_tokens(input_shape, num_classes, vocabulary, padding)
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads; got dim={dim}, heads={heads}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be a probability, 0 <= dropout < 1; got {dropout}")
        self.padding, self.per_token = padding, per_token
        self.embedding = nn.Embedding(vocabulary, dim, padding_idx=padding)
        self.position = nn.Parameter(torch.empty(1, input_shape[0], dim))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                dim, heads, mlp_ratio * dim, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        if not per_token:
            self.pooled = MaskedMean()
        self.fc = nn.Linear(dim, num_classes)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits ``[N, num_classes]``, or ``[N, L, num_classes]`` with ``per_token``, of token ids ``[N, L]`` int64."""
        length = self.position.shape[1]
        if ids.dim() != 2 or ids.shape[1] > length:
            raise ValueError(
                f"token ids must be [N, L] with at most {length}, as input_shape says; got {list(ids.shape)}"
            )
        padded = ids == self.padding  # [N, L]
        # a row of padding alone attends to itself, as a softmax over nothing is NaN; no mean has it
        hidden_from = padded & ~padded.all(1, keepdim=True)
        tokens = self.embedding(ids) + self.position[:, : ids.shape[1]]  # [N, L, dim]
        for block in self.blocks:
            tokens = block(tokens, src_key_padding_mask=hidden_from)
        tokens = self.norm(tokens)
        logits: Tensor = self.fc(tokens if self.per_token else self.pooled(tokens, padded))
        return logits
