"""The cost of a model: parameters, operations, size, latency."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from kdx.analysis.flops import count_flops
from kdx.analysis.stored import count_stored
from kdx.batch import Batch
from kdx.capture import call
from kdx.errors import CountError
from kdx.modes import evaluating

__all__ = ["Cost", "measure_cost", "measure_latency"]

_STORED = ("parameters", "bytes", "bits", "sparsity")


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a model: parameters, operations, size and latency.

    Args:
        parameters: number of parameters; of quantised weights those that they stand for. None if they cannot be
            counted, and ``uncounted`` says why.
        flops: operations of one sample, a multiplication and an addition as two; see
            :func:`kdx.analysis.counting_flops`. None if they cannot be counted.
        bytes: size of all parameters and buffers, as they are stored. None if they cannot be counted.
        latency_ms: median time of one forward pass of the example, in milliseconds.
        latency_spread_ms: distance between its 20th and 80th percentile.
        bits: stored for one parameter, with the scales of quantised ones, see :class:`kdx.analysis.Stored`.
        sparsity: share of zeros in the weights of two or more dimensions.
        uncounted: name of a field that is None -> why it cannot be counted.
    """

    parameters: int | None
    flops: int | None
    bytes: int | None
    latency_ms: float
    latency_spread_ms: float
    bits: float | None = None
    sparsity: float | None = None
    uncounted: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def measure_cost(model: nn.Module, example: Any, *, repeats: int = 100, threads: int = 1) -> Cost:
    """Counts a model and times it in evaluation mode on the example's shape.

    Quantised, packed, sparse and exported models are counted too. A number that cannot be had is None, and
    :attr:`Cost.uncounted` says why.

    Args:
        model: the model; its modes are restored afterwards.
        example: what it takes, see :class:`kdx.Batch`; ``N`` samples, moved to the model's device.
        repeats: timed passes, after a tenth as many to warm up.
        threads: CPU threads while timing; one gives the steadiest numbers.
    """
    tensors = itertools.chain(model.parameters(), model.buffers())
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))
    example = Batch(example).to(device).inputs
    with evaluating(model):
        latency, spread = measure_latency(
            lambda inputs: call(model, inputs), example, repeats=repeats, threads=threads, device=device
        )
    counted: dict[str, Any] = dict.fromkeys((*_STORED, "flops"))
    uncounted: dict[str, str] = {}
    try:
        counted |= asdict(count_stored(model))
    except CountError as error:
        uncounted |= dict.fromkeys(_STORED, str(error))
    try:
        counted["flops"] = count_flops(model, example)
    except CountError as error:
        uncounted["flops"] = str(error)
    return Cost(**counted, latency_ms=latency, latency_spread_ms=spread, uncounted=uncounted)


def measure_latency(
    run: Callable[[Any], Any],
    example: Any,
    *,
    repeats: int = 100,
    threads: int = 1,
    device: torch.device | str = "cpu",
) -> tuple[float, float]:
    """Times one call, of a model or of anything else that takes its inputs, such as a session of another runtime.

    Args:
        run: called with the example, without gradients; another runtime must be told by itself how many threads to use.
        example: what it takes.
        repeats: timed calls, after a tenth as many to warm up.
        threads: CPU threads of PyTorch while timing.
        device: waited for after each call if it is a GPU.

    Returns:
        The median time and the distance between the 20th and the 80th percentile, in milliseconds.
    """
    device, before, times = torch.device(device), torch.get_num_threads(), []
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            for _ in range(repeats // 10 + 1):
                run(example)
            for _ in range(repeats):
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                start = time.perf_counter()
                run(example)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times.append(1e3 * (time.perf_counter() - start))
    finally:
        torch.set_num_threads(before)
    fifths = statistics.quantiles(times, n=5)
    return statistics.median(times), fifths[3] - fifths[0]
