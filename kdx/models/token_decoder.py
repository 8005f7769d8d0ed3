"""A small causal language model of token ids."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from kdx.models.shape import check_positive, check_tokens

__all__ = ["TokenDecoder"]


class TokenDecoder(nn.Module):
    """A small pre-norm causal transformer (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762) on token ids.

    The output at a place depends on the tokens up to it, so it predicts the one that follows: the task `causal-lm`.
    Learned positions are added to the tokens' vectors. With ``embedding_dim`` these vectors, and those that the logits
    are products with, are smaller than ``dim`` (factorised as in ALBERT, https://arxiv.org/abs/1909.11942), which is
    where the parameters of a small model with a large vocabulary would be.

    With ``position_ids`` that begin anew at every document of a row, as `token-stream` packs them, no document sees
    another.

    Taps: ``embedding`` ``[N, L, E]``, ``expand`` ``[N, L, dim]``, ``blocks.0`` .. ``[N, L, dim]``, ``norm``
    ``[N, L, dim]``, ``reduce`` ``[N, L, E]``, the states that the output layer ``fc`` makes logits of.

    Args:
        dim: size of a token within the blocks, a multiple of ``heads``.
        depth: number of decoder blocks.
        heads: attention heads.
        mlp_ratio: units of the hidden layer in a block, as a multiple of ``dim``.
        embedding_dim: E, size of a token's vector in the tables; None: ``dim``.
        tied: whether the output layer has the weight of the embedding.
        dropout: probability that a unit is dropped in training.
        num_classes: number of token ids, of the inputs and of the outputs.
        input_shape: ``(L,)``, tokens per row; shorter rows work too.

    Raises:
        ValueError: the sizes do not fit one another, or a row is longer than stated.

    Example:
        >>> import torch
        >>> from kdx.models.token_decoder import TokenDecoder
        >>> model = TokenDecoder(32, embedding_dim=8, num_classes=500, input_shape=(64,))
        >>> model(torch.ones(2, 10, dtype=torch.int64)).shape, sum(each.numel() for each in model.parameters())
        (torch.Size([2, 10, 500]), 32532)
    """

    def __init__(
        self,
        dim: int = 64,
        *,
        depth: int = 2,
        heads: int = 4,
        mlp_ratio: int = 4,
        embedding_dim: int | None = None,
        tied: bool = True,
        dropout: float = 0.0,
        num_classes: int,
        input_shape: tuple[int, ...] = (128,),
    ) -> None:
        super().__init__()
        size = dim if embedding_dim is None else embedding_dim
        check_positive(dim=dim, depth=depth, heads=heads, mlp_ratio=mlp_ratio, embedding_dim=size)
        check_tokens(input_shape, num_classes, num_classes, 0)
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads; got dim={dim}, heads={heads}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be a probability, 0 <= dropout < 1; got {dropout}")
        self.embedding = nn.Embedding(num_classes, size)
        self.expand = nn.Identity() if size == dim else nn.Linear(size, dim, bias=False)
        self.position = nn.Parameter(torch.empty(1, input_shape[0], dim))
        self.blocks = nn.ModuleList(_Block(dim, heads, mlp_ratio * dim, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.reduce = nn.Identity() if size == dim else nn.Linear(dim, size, bias=False)
        self.fc = nn.Linear(size, num_classes)
        nn.init.normal_(self.embedding.weight, std=size**-0.5)  # logits of a tied layer are of order 1
        nn.init.trunc_normal_(self.position, std=0.02)
        nn.init.zeros_(self.fc.bias)
        if tied:
            self.fc.weight = self.embedding.weight

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """Logits ``[N, L, num_classes]`` of token ids ``[N, L]`` int64.

        Args:
            input_ids: token ids.
            position_ids: int64 ``[N, L]``, the place of each token in its document; None: a row is one document.
        """
        length = self.position.shape[1]
        if input_ids.dim() != 2 or input_ids.shape[1] > length:
            raise ValueError(
                f"token ids must be [N, L] with at most {length}, as input_shape says; got {list(input_ids.shape)}"
            )
        seen: Tensor | None = None
        if position_ids is None:
            places = self.position[:, : input_ids.shape[1]]
        else:
            places = self.position[0, position_ids]
            document = (position_ids == 0).cumsum(1)
            seen = (document.unsqueeze(2) == document.unsqueeze(1)).tril().unsqueeze(1)  # [N, 1, L, L]
        tokens = self.expand(self.embedding(input_ids)) + places  # [N, L, dim]
        for block in self.blocks:
            tokens = block(tokens, seen)
        logits: Tensor = self.fc(self.reduce(self.norm(tokens)))
        return logits


class _Block(nn.Module):
    """Attention to the places before and the own one, and a perceptron, each added to what it is given."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, tokens: Tensor, seen: Tensor | None) -> Tensor:
        """``[N, L, dim]`` of ``[N, L, dim]``; what a place sees, bool ``[N, 1, L, L]``, None for all before it."""
        q, k, v = self.qkv(self.norm1(tokens)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [N, h, L, d]
        share = self.dropout if self.training else 0.0
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=share, is_causal=seen is None)
        mixed = mixed.transpose(1, 2).flatten(2)
        tokens = tokens + nn.functional.dropout(self.out(mixed), self.dropout, self.training)
        added: Tensor = tokens + nn.functional.dropout(self.mlp(self.norm2(tokens)), self.dropout, self.training)
        return added
