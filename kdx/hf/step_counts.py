"""The things that the terms of a step are means over, in all of its micro-batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kdx.batch import Batch
from kdx.losses import Count, Counted, Losses, Over
from kdx.schemes.base import Scheme

__all__ = ["StepCounts"]


class StepCounts:
    """How many there are of all that terms may be means over, in the micro-batches of a step together.

    Args:
        scheme: counts them (:meth:`kdx.Scheme.count`).
        window: the micro-batches.
    """

    def __init__(self, scheme: Scheme, window: Sequence[Batch]) -> None:
        self.scheme = scheme
        self.parts = len(window)
        self.totals: dict[Counted, Count] = {
            over: sum((scheme.count(over, batch) for batch in window), 0.0) for over in scheme.counted
        }

    def shares(self, losses: Losses, batch: Batch) -> Mapping[str, Tensor]:
        """Name -> the part of one micro-batch in the mean of a term over the step, so that the parts add up to it.

        Raises:
            ValueError: there are several micro-batches, and a term's count only its outputs tell.
        """
        found = {}
        for name, term in losses.terms.items():
            over = losses.over.get(name, None if name in losses.counts else Over.ROWS)
            if over is None:
                if self.parts > 1:
                    raise ValueError(
                        f"term {name!r} is a mean over what only the models' outputs tell, which a trainer cannot put "
                        "together over several micro-batches; set gradient_accumulation_steps=1, or use kdx.fit"
                    )
                found[name] = term
                continue
            total = torch.as_tensor(self.totals[over], device=term.device)
            count = torch.as_tensor(self.scheme.count(over, batch), device=term.device)
            found[name] = term * torch.where(total > 0, count / total, 0).to(term.dtype)
        return found
