"""Floating point operations of a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kdx.analysis.quantised_flops import formulas, multiplies
from kdx.batch import Batch
from kdx.capture import call, unwrap
from kdx.errors import CountError
from kdx.modes import evaluating

__all__ = ["Counted", "count_flops", "counting_flops"]


class Counted(Protocol):
    """The count of :func:`counting_flops`: torch's ``FlopCounterMode``, and what it could not count."""

    uncounted: set[str]
    """Operations that ran, may multiply matrices, and have no formula."""

    def get_total_flops(self) -> int:
        """All operations counted so far."""

    def get_flop_counts(self) -> dict[str, dict[Any, int]]:
        """Name of a module, and ``Global`` -> operation -> count."""


@contextmanager
def counting_flops() -> Iterator[Counted]:
    """Counts the operations of what runs inside, with ``torch.utils.flop_counter``.

    Matrix products, convolutions and attention are counted, those of quantised layers too, a multiplication and an
    addition as two; additions of a bias, norms, activations and pooling are not, and zeros count as other numbers.
    PyTorch's fused kernels for transformer layers, attention and recurrent layers would hide their products from the
    counter, so they are turned off inside; the operations are the same.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports triton and torch.export, which planning needs not

    class Counter(FlopCounterMode):
        """Notes the operations that have no formula and may multiply matrices."""

        def __init__(self) -> None:
            super().__init__(display=False, custom_mapping=formulas())
            self.uncounted: set[str] = set()

        def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
            if func_packet not in self.flop_registry and multiplies(func_packet):
                self.uncounted.add(str(func_packet))
            return super()._count_flops(func_packet, out, args, kwargs)  # type: ignore[no-untyped-call]  # torch's

    fused = torch.backends.mha.get_fastpath_enabled()
    # which run an LSTM, for one, as a single operation
    libraries: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
    enabled = [library.enabled for library in libraries]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for library in libraries:
            library.enabled = False
        with sdpa_kernel(SDPBackend.MATH), Counter() as counter:
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

    Raises:
        CountError: it runs operations for which there is no formula, which are named.

    Example:
        >>> count_flops(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(5, 3))
        40
    """
    with evaluating(model), torch.no_grad(), counting_flops() as counter:
        call(model, inputs)
    if counter.uncounted:
        named = ", ".join(sorted(counter.uncounted))
        raise CountError(
            f"cannot be counted: {type(unwrap(model)).__name__} runs {named}, whose operations no formula counts; give "
            "one with torch.utils.flop_counter.register_flop_formula (0 for what multiplies no matrices)"
        )
    return int(counter.get_total_flops()) // Batch(inputs).rows
