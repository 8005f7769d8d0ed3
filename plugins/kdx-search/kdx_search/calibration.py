"""Running statistics of norms, measured anew for the weights that are there."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from kdx import Batch, Taps
from kdx_search.sub_network import SubNetwork

__all__ = ["recalibrate"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def recalibrate(model: nn.Module, batches: Iterable[Any], *, limit: int | None = None) -> int:
    """Measures the running mean and variance of every BatchNorm anew, as the plain average over batches.

    The statistics that a whole model collected are those of other channels than a sub-network's, and with them its
    outputs are wrong (Yu and Huang 2019, https://arxiv.org/abs/1903.05134, section 3.2, where they are called post
    statistics). All other modules run as in evaluation; no weight changes.

    Args:
        model: a sub-network, whose own statistics are measured, or any model.
        batches: as :meth:`kdx.Batch.of` reads them, of training rows; nothing is asked of their targets.
        limit: the most batches that are read; None reads all.

    Returns:
        How many norms were measured; 0 leaves the batches unread.

    Raises:
        ValueError: there is no batch.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> recalibrate(norm, [(torch.tensor([[0.0, 2.0], [4.0, 2.0]]), None)]), norm.running_mean
        (1, tensor([2., 2.]))
    """
    network = model.structure if isinstance(model, SubNetwork) else model
    norms = [module for module in network.modules() if isinstance(module, _NORMS) and module.running_mean is not None]
    if not norms:
        return 0
    leading = model.shared if isinstance(model, SubNetwork) else model  # whose modes a sub-network follows
    modes = [(module, module.training) for module in leading.modules()]
    momenta = [norm.momentum for norm in norms]
    device = next((tensor.device for tensor in leading.parameters()), torch.device("cpu"))
    run = Taps(model, ())
    count = 0
    try:
        for module, _ in modes:
            module.training = isinstance(module, _NORMS)
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain average
        with torch.no_grad():
            for count, item in enumerate(itertools.islice(batches, limit), start=1):  # noqa: B007
                run(Batch.of(item).to(device).inputs)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes:
            module.training = mode
    if not count:
        raise ValueError("batches: expected at least one, to measure the statistics of norms on; got none")
    return len(norms)
