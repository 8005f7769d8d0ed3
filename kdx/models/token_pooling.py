"""The mean over the tokens that are not padding."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["MaskedMean"]


class MaskedMean(nn.Module):
    """The mean of a row's tokens, without those that are padding."""

    def forward(self, tokens: Tensor, padded: Tensor) -> Tensor:
        """Means ``[N, D]`` of tokens ``[N, L, D]``; ``padded`` ``[N, L]`` is True at padding, a row of it gives 0."""
        kept = (~padded).unsqueeze(2).to(tokens.dtype)  # [N, L, 1]
        return (tokens * kept).sum(1) / kept.sum(1).clamp(min=1)
