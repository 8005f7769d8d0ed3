"""The cross-entropy of logits that are held as hidden states and a head."""

from __future__ import annotations

from torch import Tensor

from kdx.linear_logits import LinearLogits
from kdx.ops import linear_kl

__all__ = ["linear_cross_entropy"]


def linear_cross_entropy(logits: LinearLogits, targets: Tensor) -> Tensor:
    """The mean cross-entropy of the rows with a target, 0 with zero gradients where there is none.

    :func:`kdx.ops.linear_kl` computes it in chunks of rows.

    Args:
        logits: ``[..., V]``.
        targets: int64 ``[...]``, -100 for none.
    """
    return linear_kl(
        logits.hidden,
        logits.weight,
        None,
        student_bias=logits.bias,
        student_scale=logits.scale,
        student_softcap=logits.softcap,
        labels=targets,
        alpha=0.0,
    )
