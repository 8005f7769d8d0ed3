"""A very small model for texts."""

from __future__ import annotations

from torch import Tensor, nn

from kdx.models.shape import check_positive, check_tokens

__all__ = ["EmbeddingBag"]


class EmbeddingBag(nn.Module):
    """The mean of the tokens' vectors and a perceptron on it; the order of the tokens plays no part.

    Taps: ``bag`` ``[N, width]``, ``hidden`` ``[N, width]``, ``fc`` (the logits).

    Args:
        width: of the vectors and of the hidden layer.
        vocabulary: number of token ids, as the data set's attribute of this name says.
        padding: the id that is left out of the mean; a row of padding alone has the mean 0.
        num_classes: number of outputs.
        input_shape: ``(L,)``, tokens per row; any length works.

    Raises:
        ValueError: a size is below 1, or ``padding`` is no token id.

    Example:
        >>> import torch
        >>> from kdx.models.bag import EmbeddingBag
        >>> EmbeddingBag(8, vocabulary=100, num_classes=3)(torch.randint(100, (2, 5))).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        width: int = 64,
        *,
        vocabulary: int,
        padding: int = 0,
        num_classes: int = 2,
        input_shape: tuple[int, ...] = (64,),
    ) -> None:
        super().__init__()
        check_positive(width=width)
        check_tokens(input_shape, num_classes, vocabulary, padding)
        self.bag = nn.EmbeddingBag(vocabulary, width, mode="mean", padding_idx=padding)
        self.hidden = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.fc = nn.Linear(width, num_classes)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of token ids ``[N, L]`` int64."""
        logits: Tensor = self.fc(self.hidden(self.bag(ids)))
        return logits
