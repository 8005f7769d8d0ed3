"""Run the benchmarks of one op on one device."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch

from bench.measure import Timing, WrongError, check, copy_bandwidth, step, time_all
from bench.registry import Case, Inputs, OpBench, Provider

Row = dict[str, object]
Ready = dict[str, tuple[Provider, tuple[float, float]]]  # name -> provider and its errors of loss and gradient


def run(
    bench: OpBench,
    device: torch.device,
    threads: list[int],
    conditions: dict[str, str],
    seconds: float = 0.5,
    only: str = "",
    without: Collection[str] = (),
    record: Callable[[list[Row]], None] = lambda rows: None,
) -> list[str]:
    """Time every case and provider; ``record`` gets the rows of each case as soon as they are there.

    Returns:
        A line for everything that was wrong or failed, which gets no row; the other providers and cases go on.

    """
    wrong: list[str] = []
    before = torch.get_num_threads()
    try:
        for count in threads:
            torch.set_num_threads(count)
            copy = copy_bandwidth(device)
            shared = {"threads": count if device.type == "cpu" else "", **conditions}
            for case in bench.cases(device.type):
                if only and only not in case.shape:
                    continue
                rows, failed = _case(bench, case, device, copy, seconds, without)
                record([row | shared for row in rows])
                wrong += failed
    finally:
        torch.set_num_threads(before)
    return wrong


def _case(
    bench: OpBench, case: Case, device: torch.device, copy: float, seconds: float, without: Collection[str]
) -> tuple[list[Row], list[str]]:
    torch._dynamo.reset()  # so that torch.compile specialises on this case, as it would in a training run
    wrong: list[str] = []
    rows: list[Row] = []

    def failed(what: str, error: Exception) -> None:
        said = str(error) if isinstance(error, WrongError) else f"{what} failed on {_title(bench, case)}: {error!r}"
        wrong.append(said)
        print(f"  {said}", flush=True)

    # Whatever goes wrong below is a line of the result and makes the command fail: hours later, or on a machine lent
    # for minutes, the rows of the others are worth having.
    try:
        inputs = bench.make(case, device)
        truth = bench.truth(*inputs)
    except Exception as error:
        failed("the float64 truth", error)
        return rows, wrong
    ready: Ready = {}
    for provider in bench.providers(device.type):
        reason = "asked for" if provider.name in without else provider.why_not(inputs)
        if reason is not None:
            print(f"  {provider.name} left out: {reason}", flush=True)
            continue
        try:
            ready[provider.name] = provider, check(bench, case, provider, inputs, truth)
        except torch.OutOfMemoryError:
            print(f"  {provider.name} left out: out of memory on {case.shape}", flush=True)
        except Exception as error:
            failed(provider.name, error)
    del truth
    for backward in (False, True):
        calls = {name: _call(provider, inputs, backward) for name, (provider, _) in ready.items()}
        try:
            timings = time_all(calls, device, seconds)
        except Exception as error:
            failed("timing", error)
            continue
        rows += [_row(bench, case, backward, name, ready[name][1], timings[name], copy) for name in timings]
        shown = "  ".join(f"{name} {timing.median:.4g} ms" for name, timing in timings.items())
        print(f"{_title(bench, case)} {'fwd+bwd' if backward else 'fwd'}: {shown or 'nobody'}", flush=True)
    return rows, wrong


def _title(bench: OpBench, case: Case) -> str:
    return f"{bench.op} {case.shape} {case.dtype} {case.data}"


def _call(provider: Provider, inputs: Inputs, backward: bool) -> Callable[[], object]:
    return lambda: step(provider.function, inputs, backward)


def _row(
    bench: OpBench,
    case: Case,
    backward: bool,
    name: str,
    errors: tuple[float, float],
    timing: Timing,
    copy: float,
) -> Row:
    rate = bench.least_bytes(case, backward) / (timing.median * 1e-3)
    return {
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
        "loss_error": f"{errors[0]:.1e}",
        "grad_error": f"{errors[1]:.1e}",
        "x": (bench.sweep[1](case) or "") if bench.sweep else "",
    }
