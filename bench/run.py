"""Run the benchmarks of one op on one device."""

from __future__ import annotations

import torch

from bench.measure import WrongError, check, copy_bandwidth, step, time_all
from bench.registry import Case, Inputs, OpBench, Provider


def run(
    bench: OpBench,
    device: torch.device,
    threads: list[int],
    conditions: dict[str, str],
    seconds: float = 0.5,
    only: str = "",
) -> tuple[list[dict[str, object]], list[str]]:
    """Rows of every case and provider, and a line for each that was wrong (which gets no row)."""
    rows: list[dict[str, object]] = []
    wrong: list[str] = []
    before = torch.get_num_threads()
    try:
        for count in threads:
            torch.set_num_threads(count)
            copy = copy_bandwidth(device)
            for case in bench.cases(device.type):
                if only and only not in case.shape:
                    continue
                found, failed = _case(bench, case, device, copy, seconds)
                shared = {"threads": count if device.type == "cpu" else "", **conditions}
                rows += [row | shared for row in found]
                wrong += failed
    finally:
        torch.set_num_threads(before)
    return rows, wrong


def _case(
    bench: OpBench, case: Case, device: torch.device, copy: float, seconds: float
) -> tuple[list[dict[str, object]], list[str]]:
    torch._dynamo.reset()  # so that torch.compile specialises on this case, as it would in a training run
    inputs = bench.make(case, device)
    ready: dict[str, tuple[Provider, tuple[float, float]]] = {}
    wrong = []
    for provider in bench.providers(device.type):
        reason = provider.why_not(inputs)
        if reason is not None:
            print(f"  {provider.name} left out: {reason}")
            continue
        try:
            ready[provider.name] = provider, check(bench, case, provider, inputs)
        except WrongError as error:
            wrong.append(str(error))
            print(f"  {error}")
        except torch.OutOfMemoryError:
            print(f"  {provider.name} left out: out of memory on {case.shape}")
    rows = []
    for backward in (False, True):
        calls = {name: _call(provider, inputs, backward) for name, (provider, _) in ready.items()}
        timings = time_all(calls, device, seconds)
        for name, timing in timings.items():
            rate = bench.least_bytes(case, backward) / (timing.median * 1e-3)
            loss_error, grad_error = ready[name][1]
            rows.append(
                {
                    "op": bench.op,
                    "shape": case.shape,
                    "dtype": str(case.dtype).removeprefix("torch."),
                    "data": case.data,
                    "pass": "fwd+bwd" if backward else "fwd",
                    "provider": name,
                    "median_ms": f"{timing.median:.5g}",
                    "p20_ms": f"{timing.p20:.5g}",
                    "p80_ms": f"{timing.p80:.5g}",
                    "gb_per_s": f"{rate / 1e9:.4g}",
                    "share_of_copy": f"{rate / copy:.3f}",
                    "copy_gb_per_s": f"{copy / 1e9:.4g}",
                    "peak_mb": "" if timing.peak_bytes is None else f"{timing.peak_bytes / 2**20:.1f}",
                    "loss_error": f"{loss_error:.1e}",
                    "grad_error": f"{grad_error:.1e}",
                    "x": (bench.sweep[1](case) or "") if bench.sweep else "",
                }
            )
        best = min(timing.median for timing in timings.values())
        shown = "  ".join(f"{name} {timing.median:.4g} ms" for name, timing in timings.items())
        print(
            f"{bench.op} {case.shape} {case.dtype} {case.data} {'fwd+bwd' if backward else 'fwd'}: {shown}", flush=True
        )
        assert best > 0
    return rows, wrong


def _call(provider: Provider, inputs: Inputs, backward: bool) -> object:
    return lambda: step(provider.function, inputs, backward)
