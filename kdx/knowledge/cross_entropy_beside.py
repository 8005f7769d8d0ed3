"""The cross-entropy of a task, computed along with a divergence of the same logits."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["CrossEntropyBeside"]


@dataclass(slots=True, eq=False)
class CrossEntropyBeside:
    """A cross-entropy that a divergence of the same hidden states and head computes along, of one product of the head.

    A scheme gives it to a component (:class:`kdx.knowledge.Divergence`), which leaves the loss in it.

    Args:
        labels: int64, one for each row of the logits, -100 for none.
        weights: of the divergence and of the cross-entropy in the step's loss, so that the gradient of both is made in
            one go. The component's own loss stays unweighted.
        loss: the weighted mean cross-entropy, once the component has run.
    """

    labels: Tensor
    weights: tuple[float | Tensor, float | Tensor]
    loss: Tensor | None = None
