"""Label noise, for experiments on learning from wrong labels."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["symmetric_noise"]


def symmetric_noise(targets: Tensor, fraction: float, *, num_classes: int, seed: int = 0) -> Tensor:
    """Replace a fraction of the labels by another class, each other class being equally likely.

    ``round(fraction * labelled)`` rows get a label that is certainly wrong. (Where a paper draws from all classes, the
    true one among them, its rate r is ``fraction = r * (num_classes - 1) / num_classes`` here.)

    Args:
        targets: class of every row, int64, ``[N]``; negative ones (no label) stay as they are and do not count.
        fraction: share of wrong labels, ``0 .. 1``.
        num_classes: number of classes, at least 2.
        seed: another seed spoils other rows.

    Returns:
        A copy of ``targets`` with the noise, int64, ``[N]``.

    Raises:
        TypeError: ``targets`` is not int64.
        ValueError: an argument is out of range.

    Example:
        >>> import torch
        >>> clean = torch.arange(10).repeat(10)
        >>> int((symmetric_noise(clean, 0.4, num_classes=10) != clean).sum())
        40

    """
    if targets.dtype != torch.int64:
        raise TypeError(f"targets must be int64 class numbers; got {targets.dtype}")
    if targets.dim() != 1:
        raise ValueError(f"targets must have one dimension [N]; got shape {list(targets.shape)}")
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"fraction must be between 0 and 1; got {fraction}")
    if num_classes < 2 or (len(targets) and int(targets.max()) >= num_classes):
        raise ValueError(
            f"num_classes must be at least 2 and larger than every target; got {num_classes} "
            f"with targets up to {int(targets.max()) if len(targets) else 'none'}"
        )
    generator = torch.Generator().manual_seed(seed)
    labelled = (targets.cpu() >= 0).nonzero().squeeze(1)
    chosen = labelled[torch.randperm(len(labelled), generator=generator)[: round(fraction * len(labelled))]]
    shift = torch.randint(1, num_classes, (len(chosen),), generator=generator)  # never 0: never the true class
    noisy = targets.clone()
    noisy[chosen] = (targets[chosen] + shift.to(targets.device)) % num_classes
    return noisy
