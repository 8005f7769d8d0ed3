"""The cost of a model: parameters, operations, size, latency."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from kdx.analysis.flops import count_flops
from kdx.batch import Batch
from kdx.capture import call
from kdx.modes import evaluating

__all__ = ["Cost", "measure_cost"]


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a model: parameters, operations, size and latency.

    Args:
        parameters: number of parameters.
        flops: operations of one sample, a multiplication and an addition as two; see
            :func:`kdx.analysis.counting_flops`.
        bytes: size of all parameters and buffers.
        latency_ms: median time of one forward pass of the example, in milliseconds.
        latency_spread_ms: distance between its 20th and 80th percentile.
    """

    parameters: int
    flops: int
    bytes: int
    latency_ms: float
    latency_spread_ms: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def measure_cost(model: nn.Module, example: Any, *, repeats: int = 100, threads: int = 1) -> Cost:
    """Counts a model and times it in evaluation mode on the example's shape.

    Args:
        model: the model; its modes are restored afterwards.
        example: what it takes, see :class:`kdx.Batch`; ``N`` samples, moved to the model's device.
        repeats: timed passes, after a tenth as many to warm up.
        threads: CPU threads while timing; one gives the steadiest numbers.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    example = Batch(example).to(device).inputs
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    times = []
    try:
        with evaluating(model), torch.inference_mode():
            for _ in range(repeats // 10 + 1):
                call(model, example)
            for _ in range(repeats):
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                start = time.perf_counter()
                call(model, example)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times.append(1e3 * (time.perf_counter() - start))
    finally:
        torch.set_num_threads(before)
    fifths = statistics.quantiles(times, n=5)
    tensors = [*model.parameters(), *model.buffers()]
    return Cost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        flops=count_flops(model, example),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        latency_ms=statistics.median(times),
        latency_spread_ms=fifths[3] - fifths[0],
    )
