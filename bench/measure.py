"""Checking and timing: correctness first, providers interleaved, medians with 20/80 percentiles."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.registry import Case, Inputs, OpBench, Provider

L2_FLUSH_BYTES = 256 << 20


class WrongError(AssertionError):
    """A provider's loss or gradient is off by more than the benchmark lets through."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call, and bytes allocated above what the inputs take (None on a CPU)."""

    median: float
    p20: float
    p80: float
    peak_bytes: int | None


def step(function: Callable[..., Tensor], inputs: Inputs, backward: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One forward pass, and the gradients of what asks for one."""
    if not backward:
        with torch.no_grad():
            return function(*inputs), ()
    loss = function(*inputs)
    return loss, torch.autograd.grad(loss, [x for x in inputs if x.requires_grad])


def check(
    bench: OpBench, case: Case, provider: Provider, inputs: Inputs, truth: tuple[Tensor, Tensor]
) -> tuple[float, float]:
    """Relative errors of loss and gradient against float64; raises `WrongError` where they are too large."""
    want, want_grad = truth
    loss, (grad, *_) = step(provider.function, inputs, backward=True)
    loss_error = (abs(loss.double() - want) / abs(want)).item()
    grad_error = ((grad.double() - want_grad).norm() / want_grad.norm()).item()
    loss_bound, grad_bound = bench.tolerance(case, provider.name)
    if not (loss_error <= loss_bound and grad_error <= grad_bound):
        raise WrongError(
            f"{provider.name} is wrong on {bench.op} {case.shape} {case.dtype}: relative error of the loss "
            f"{loss_error:.1e} (bound {loss_bound:.1e}), of the gradient {grad_error:.1e} (bound {grad_bound:.1e})"
        )
    return loss_error, grad_error


def time_all(calls: dict[str, Callable[[], object]], device: torch.device, seconds: float) -> dict[str, Timing]:
    """Time every call, taking turns, for about ``seconds`` each."""
    timer = _gpu_timer(device) if device.type == "cuda" else _cpu_time
    repeats, samples = {}, {}
    for name, call in calls.items():
        for _ in range(3):
            call()
        once = max(timer(call, 1), 1e-4)
        # Short CPU calls are repeated inside one sample so that the clock's own cost disappears.
        repeats[name] = max(1, int(1.0 / once)) if device.type == "cpu" else 1
        samples[name] = []
    rounds = 0
    start = time.perf_counter()
    while rounds < 10 or (time.perf_counter() - start < seconds * len(calls) and rounds < 200):
        for name, call in calls.items():
            samples[name].append(timer(call, repeats[name]))
        rounds += 1
    return {name: _timing(samples[name], calls[name], device) for name in calls}


def _timing(samples: list[float], call: Callable[[], object], device: torch.device) -> Timing:
    fifths = statistics.quantiles(samples, n=5)
    peak = None
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
    return Timing(statistics.median(samples), fifths[0], fifths[3], peak)


def _cpu_time(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats * 1e3


def _gpu_timer(device: torch.device) -> Callable[[Callable[[], object], int], float]:
    """CUDA events around one call with a cold L2; writing the L2 keeps the GPU busy while the call is being queued."""
    flush = torch.empty(L2_FLUSH_BYTES, dtype=torch.uint8, device=device)

    def measure(call: Callable[[], object], repeats: int) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    return measure


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second that a plain copy moves (read + written): the limit that shares are given of."""
    size = (1 << 30) if device.type == "cuda" else (1 << 28)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timing = time_all({"copy": lambda: target.copy_(source)}, device, 1.0)["copy"]
    return 2 * size / (timing.median * 1e-3)
