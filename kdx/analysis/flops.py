"""Floating point operations of a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kdx.batch import Batch
from kdx.capture import call
from kdx.modes import evaluating

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

__all__ = ["count_flops", "counting_flops"]


@contextmanager
def counting_flops() -> Iterator[FlopCounterMode]:
    """Counts the operations of what runs inside, with ``torch.utils.flop_counter``.

    Matrix products, convolutions and attention are counted, a multiplication and an addition as two; additions of a
    bias, norms, activations and pooling are not. PyTorch's fused kernels for transformer layers, attention and
    recurrent layers would hide their products from the counter, so they are turned off inside; the operations are the
    same.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports triton and torch.export, which planning needs not

    fused = torch.backends.mha.get_fastpath_enabled()
    # which run an LSTM, for one, as a single operation
    libraries: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
    enabled = [library.enabled for library in libraries]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for library in libraries:
            library.enabled = False
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for library, before in zip(libraries, enabled, strict=True):
            library.enabled = before


def count_flops(model: nn.Module, inputs: Any) -> int:
    """Operations of one forward pass in evaluation mode, for one sample; see :func:`counting_flops`.

    Args:
        model: any module; nothing about it changes.
        inputs: what the model takes, see :class:`kdx.Batch`, ``N`` samples.

    Example:
        >>> count_flops(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(5, 3))
        40
    """
    with evaluating(model), torch.no_grad(), counting_flops() as counter:
        call(model, inputs)
    return int(counter.get_total_flops()) // Batch(inputs).rows
