"""The loss of a language model over all tokens of an evaluation, in the forms that it is reported in."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["TokenLoss"]


class TokenLoss(Metric):
    """The negative log likelihood of all labelled tokens: per token, as perplexity, or in bits per byte.

    ``update(losses [M], targets [M])`` adds tokens; sums are kept in float64 where the device has it. ``compute`` gives
    a 0-dim tensor: NaN where there was no token, or those that were stand for no byte.

    Args:
        form: ``"nats"`` per token, ``"perplexity"``, their exponential, or ``"bits_per_byte"``.
        token_bytes: int64 ``[V]``, how many bytes each token stands for; of ``"bits_per_byte"`` alone. Targets beyond
            it stand for none.
    """

    full_state_update = False
    higher_is_better = False
    total: Tensor
    number: Tensor

    def __init__(
        self, form: Literal["nats", "perplexity", "bits_per_byte"], *, token_bytes: Tensor | None = None
    ) -> None:
        super().__init__()
        self.form = form
        self.register_buffer("token_bytes", token_bytes, persistent=False)
        self.add_state("total", default=torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("number", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, losses: Tensor, targets: Tensor) -> None:
        """Adds the negative log likelihoods of tokens, and the tokens."""
        wide = torch.float32 if losses.device.type == "mps" else torch.float64
        self.total = self.total.to(wide) + losses.sum(dtype=wide)
        if self.form == "bits_per_byte":
            sizes = self.get_buffer("token_bytes")
            listed = targets < len(sizes)
            self.number = self.number + torch.where(listed, sizes[targets.where(listed, 0)], 0).sum()
        else:
            self.number = self.number + targets.numel()

    def compute(self) -> Tensor:
        """The value over all tokens."""
        if not self.number:
            return torch.full_like(self.total, torch.nan)
        mean = self.total / self.number
        if self.form == "perplexity":
            return mean.exp()
        return mean / math.log(2) if self.form == "bits_per_byte" else mean
