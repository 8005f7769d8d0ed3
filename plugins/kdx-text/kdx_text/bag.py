"""A very small student for texts."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["EmbeddingBag"]


class EmbeddingBag(nn.Module):
    """The mean of the tokens' vectors and a perceptron on it; the order of the words plays no part.

    Taps: ``bag`` ``[N, width]``, ``hidden`` ``[N, width]``, ``fc``.

    Args:
        vocabulary: number of token ids.
        width: of the vectors and of the hidden layer.
        padding: the id that is left out of the mean.
        num_classes: number of outputs.
        input_shape: ``(L,)``, tokens per text; any length works.

    Raises:
        ValueError: a size is below 1.

    Example:
        >>> import torch
        >>> EmbeddingBag(vocabulary=100, width=8, num_classes=3)(torch.randint(100, (2, 5))).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        width: int = 64,
        padding: int = 0,
        num_classes: int = 2,
        input_shape: tuple[int, ...] = (64,),
    ) -> None:
        super().__init__()
        for name, value in (("vocabulary", vocabulary), ("width", width), ("num_classes", num_classes)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        self.bag = nn.EmbeddingBag(vocabulary, width, mode="mean", padding_idx=padding)
        self.hidden = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.fc = nn.Linear(width, num_classes)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of token ids ``[N, L]`` int64."""
        logits: Tensor = self.fc(self.hidden(self.bag(ids)))
        return logits
