"""A small convolutional net for token ids."""

from __future__ import annotations

from torch import Tensor, nn

from kdx.models.shape import check_positive, check_tokens
from kdx.models.token_pooling import MaskedMean

__all__ = ["TokenConv"]


class TokenConv(nn.Module):
    """Convolutions over the tokens' vectors; each sees a few neighbours, padding counts as nothing.

    A row is classified by the mean of its tokens, or every token by itself (``per_token``).

    Taps: ``embedding`` ``[N, L, width]``, ``convs.0`` .. ``[N, width, L]`` (Conv1d, before ReLU), ``pooled``
    ``[N, width]`` (not with ``per_token``), ``fc`` (the logits).

    Args:
        width: size of a token.
        depth: number of convolutions.
        kernel: tokens that a convolution sees, odd.
        per_token: gives logits of every token, ``[N, L, num_classes]``, in the place of those of the row.
        vocabulary: number of token ids, as the data set's attribute of this name says.
        padding: the id of the padding.
        num_classes: number of outputs.
        input_shape: ``(L,)``, tokens per row; any length works.

    Raises:
        ValueError: a size is below 1, ``kernel`` is even, or ``padding`` is no token id.

    Example:
        >>> import torch
        >>> from kdx.models.token_conv import TokenConv
        >>> TokenConv(8, per_token=True, vocabulary=40, num_classes=3)(torch.ones(2, 14, dtype=torch.int64)).shape
        torch.Size([2, 14, 3])
    """

    def __init__(
        self,
        width: int = 16,
        *,
        depth: int = 1,
        kernel: int = 3,
        per_token: bool = False,
        vocabulary: int,
        padding: int = 0,
        num_classes: int = 2,
        input_shape: tuple[int, ...] = (64,),
    ) -> None:
        super().__init__()
        check_positive(width=width, depth=depth, kernel=kernel)
        check_tokens(input_shape, num_classes, vocabulary, padding)
        if kernel % 2 == 0:
            raise ValueError(
                f"kernel must be odd, so that every token has as many neighbours on both sides; got {kernel}"
            )
        self.padding, self.per_token = padding, per_token
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=padding)
        self.convs = nn.ModuleList(nn.Conv1d(width, width, kernel, padding=kernel // 2) for _ in range(depth))
        self.relu = nn.ReLU()
        if not per_token:
            self.pooled = MaskedMean()
        self.fc = nn.Linear(width, num_classes)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits ``[N, num_classes]``, or ``[N, L, num_classes]`` with ``per_token``, of token ids ``[N, L]`` int64."""
        padded = ids == self.padding  # [N, L]
        outside = padded.unsqueeze(1)  # [N, 1, L]
        tokens = self.embedding(ids).transpose(1, 2).masked_fill(outside, 0.0)  # [N, width, L]
        for conv in self.convs:
            tokens = self.relu(conv(tokens)).masked_fill(outside, 0.0)
        tokens = tokens.transpose(1, 2)
        logits: Tensor = self.fc(tokens if self.per_token else self.pooled(tokens, padded))
        return logits
