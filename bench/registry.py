"""What a benchmark is made of: cases, inputs, the least work an op can do, and who computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from kdx.errors import BackendError, UnknownNameError, nearest
from kdx.ops import OPS, select

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """One set of inputs. ``shape`` is what the table shows; ``options`` is what the op's ``make`` understands."""

    shape: str
    dtype: torch.dtype
    data: str  # "spread" (logits of std 3, teacher one away) or "near" (teacher within 1e-2)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Provider:
    """One way to compute the op: differentiable with respect to the first input."""

    name: str
    function: Callable[..., Tensor]
    why_not: Callable[[Inputs], str | None] = lambda inputs: None


@dataclass(frozen=True)
class OpBench:
    """Everything the runner needs to know about an op.

    Args:
        op: its name, as in `kdx.ops`.
        cases: the cases for a device type, ``"cpu"`` or ``"cuda"``.
        make: inputs for a case on a device; those that need a gradient ask for one.
        truth: loss and gradient of the first input in float64, what every provider is held to before it is timed; given
            the inputs as they are.
        providers: who is compared for a device type; the first is the baseline of the ratios.
        least_bytes: bytes that have to cross the memory bus, forward only and with the backward pass.
        tolerance: largest relative error of loss and gradient that is let through, by provider and case.
        sweep: label of the plot's x axis and the number of a case on it, or None where a case is not on the plot.
    """

    op: str
    cases: Callable[[str], list[Case]]
    make: Callable[[Case, torch.device], Inputs]
    truth: Callable[..., tuple[Tensor, Tensor]]
    providers: Callable[[str], list[Provider]]
    least_bytes: Callable[[Case, bool], int]
    tolerance: Callable[[Case, str], tuple[float, float]]
    sweep: tuple[str, Callable[[Case], float | None]] | None = None


def backend(op: str, name: str, function: Callable[..., Tensor]) -> Provider:
    """A backend of kdx as a provider; ``function`` takes the inputs and ``backend=``."""

    def why_not(inputs: Inputs) -> str | None:
        try:
            select(op, name, *inputs)
        except BackendError as error:
            return str(error)
        return None

    return Provider(f"kdx {name}", lambda *inputs: function(*inputs, backend=name), why_not)


def names() -> list[str]:
    """The ops that have a benchmark, as their declarations say."""
    return sorted(op.name for op in OPS.values() if op.benchmark)


def load(op: str) -> OpBench:
    """The benchmark of an op."""
    if op not in names():
        raise UnknownNameError(f"there is no benchmark {op!r}; {nearest(op, names())}")
    found: OpBench = import_module(f"bench.ops.{op}").BENCH
    return found
