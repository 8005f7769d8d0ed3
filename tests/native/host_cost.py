"""The host cost of the fused losses: a call forward and backward on tiny tensors, with launchers that launch nothing.

``python tests/native/host_cost.py`` in a checkout prints the table. Microseconds hang on the machine, so they stand
beside ``x + 1`` of torch, in the same rounds. What is not in them: the driver's own time for a launch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch

from kdx.ops import _dispatch, _native, _triton_launch, kd_loss, softmax_kl

__all__ = ["Cost", "measure", "table"]

_BASE, _BARE = "x + 1", "an autograd.Function that does nothing"


class Cost(NamedTuple):
    """What a call takes: microseconds of the CPU in the quickest round, and how many times that of ``x + 1``."""

    call: str
    microseconds: float
    ratio: float


class _Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(student)
        return student.new_empty(())

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return ctx.saved_tensors[0], None


class _Call:
    def __init__(self, *arguments: Any) -> None: ...

    def workspace_bytes(self) -> int:
        return 64


class _Compiled:
    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, stream: None


class _Kernel:
    """A Triton kernel that is compiled before, of any arguments."""

    def __init__(self, kernel: Any) -> None:
        self.arg_names = kernel.arg_names

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., _Compiled]:
        return lambda *arguments, **constants: _Compiled()


def _anywhere(device: torch.device) -> nullcontext[None]:
    return nullcontext()


def _no_stream(device: torch.device) -> int:
    return 0


def _stubbed_triton(stack: ExitStack, student: torch.Tensor) -> None:
    """Lets the launcher of Triton run on these CPU tensors as it does on those of a GPU, but for the launch."""
    from kdx.ops._softmax_kl import triton as module

    device, kernels = torch.device("cuda", 0), {}

    def launch(kernel: Any, programs: int, _: torch.device, *arguments: Any, **constants: Any) -> None:
        fake = kernels.setdefault(id(kernel), _Kernel(kernel))
        real(fake, programs, device, *arguments, **constants)

    real = module.launch
    stack.enter_context(mock.patch.object(module, "launch", launch))
    stack.enter_context(mock.patch.object(module, "on_device", new=_anywhere))
    stack.enter_context(mock.patch.object(_triton_launch, "on", new=_anywhere))
    stack.enter_context(mock.patch.object(_triton_launch, "stream", new=_no_stream))
    key = ("softmax_kl", "triton", *(student.device, student.dtype) * 2)
    stack.enter_context(mock.patch.dict(_dispatch._chosen, {key: ("triton", module)}))


def measure(rounds: int = 40, calls: int = 50) -> list[Cost]:
    """Times everything in turn, round by round, on one thread."""
    os.environ.setdefault("TRITON_INTERPRET", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    student, teacher = torch.randn(8, 10, requires_grad=True), torch.randn(8, 10)
    labels, x = torch.arange(8), torch.ones(8)

    def step(loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
        def run() -> None:
            student.grad = None
            loss().backward()

        return run

    def of(backend: str) -> dict[str, Callable[[], object]]:
        call: dict[str, Any] = {"backend": backend, "once_differentiable": True}
        return {
            f"softmax_kl, {backend}": step(lambda: softmax_kl(student, teacher, **call)),
            f"softmax_kl 3 times, {backend}": step(lambda: 3.0 * softmax_kl(student, teacher, **call)),
            f"kd_loss, {backend}": step(lambda: kd_loss(student, teacher, labels, **call)),
        }

    nothing: Any = _Nothing.apply
    timed = {_BASE: lambda: x + 1, _BARE: step(lambda: nothing(student, teacher)), **of("cuda"), **of("triton")}
    stub = SimpleNamespace(divergences=5, SoftmaxKl=_Call, softmax_kl=lambda *_: None, scale_grad=lambda *_: None)
    with ExitStack() as stack:
        stack.enter_context(_native.override("cuda", stub))
        _stubbed_triton(stack, student.detach())
        for call in timed.values():
            call()
        times: dict[str, list[float]] = {name: [] for name in timed}
        for _ in range(rounds):
            for name, call in timed.items():
                start = time.thread_time()
                for _ in range(calls):
                    call()
                times[name].append((time.thread_time() - start) / calls * 1e6)
    torch.set_num_threads(threads)
    return [Cost(name, min(each), min(each) / min(times[_BASE])) for name, each in times.items()]


def table(rows: list[Cost]) -> str:
    """The rows as Markdown."""
    lines = [f"| {row.call} | {row.microseconds:.1f} | {row.ratio:.1f} |" for row in rows]
    return "\n".join(["| forward and backward of `[8, 10]` | us | times `x + 1` |", "|---|---|---|", *lines])


if __name__ == "__main__":
    print(table(measure()))
