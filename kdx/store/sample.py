"""Classes drawn at random from the teacher's distribution: sparse and unbiased."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from typing_extensions import override

from kdx.capture import LOGITS, Captured, Held
from kdx.errors import StoreError
from kdx.ops import SparseTargets
from kdx.store.content import Content, class_dtype

__all__ = ["Sample"]


class Sample(Content):
    """K classes of each row drawn with replacement from ``softmax(z / T)``: ``sample:K[@T]``.

    Stored are the K class numbers, sorted, so that the number of equal ones is a class's count. Read back, a class with
    count n has the probability ``n / K``, whose expectation is the teacher's. The gradient of soft targets at
    temperature T, ``T (softmax(z_s / T) - p)``, is linear in p, so its expectation over the draws is that of the whole
    distribution; the loss itself is larger, by the entropy that the estimate lacks, which does not depend on the
    student. They are read back as :class:`kdx.ops.SparseTargets`, and for what reads the tensor of all classes as
    ``T log(n / K)``, -inf where nothing was drawn. Everything except soft targets at this very temperature is refused
    (:meth:`kdx.Knowledge.accepts_estimate`).

    Args:
        k: draws a row.
        temperature: T > 0.

    Paper: Anshumann et al., Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs, ACL 2025,
    https://arxiv.org/abs/2503.16870; proposal distribution p itself, whose importance weights are all 1.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[4.0, 1.0, 3.0, 0.0]])
        >>> content = Sample(8)
        >>> stored = content.encode(Captured({"logits": logits}), torch.float32, torch.Generator().manual_seed(0))
        >>> float(content.decode(stored, classes=4)["logits"].exp().sum())
        1.0
    """

    def __init__(self, k: int, temperature: float = 1.0) -> None:
        self.k = k
        self.temperature: float = temperature

    @override
    def encode(self, teacher: Captured, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Tensor]:
        z = teacher.logits.double().cpu()
        z = z.movedim(self.axis(z.dim()), -1)  # [..., C]
        p = (z / self.temperature).softmax(-1)
        if not bool(p.isfinite().all()):
            raise StoreError("the teacher's logits hold NaN or +inf, or a row of -inf; check the teacher")
        flat = p.reshape(-1, p.shape[-1])
        draws = torch.multinomial(flat, self.k, replacement=True, generator=generator).sort(1).values
        return {"sample.draws": draws.reshape(*z.shape[:-1], self.k).to(class_dtype(z.shape[-1]))}

    @override
    def decode(self, stored: Mapping[str, Tensor], classes: int) -> dict[str, Tensor]:
        draws = stored["sample.draws"].long()
        counts = torch.zeros(*draws.shape[:-1], classes).scatter_add_(-1, draws, torch.ones(draws.shape))
        return {LOGITS: (self.temperature * (counts / self.k).log()).movedim(-1, self.axis(counts.dim()))}

    @override
    def held(self, stored: Mapping[str, Tensor], classes: int, places: Tensor | None) -> Held | None:
        draws = stored["sample.draws"].long()
        counts = torch.searchsorted(draws, draws, right=True) - torch.searchsorted(draws, draws)
        valid = None if places is None or bool(places.all()) else places[..., None].expand(draws.shape)
        logprobs = (counts / self.k).log()
        return SparseTargets(draws, logprobs, valid=valid, temperature=self.temperature, kind="sampled")
