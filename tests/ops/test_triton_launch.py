"""A Triton kernel that was compiled before is launched without Triton's own look-up."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from kdx.ops import _triton_launch

CUDA = torch.device("cuda", 0)  # nothing runs on it


class Compiled:
    def __init__(self, calls: list) -> None:
        self.calls = calls

    def __getitem__(self, grid):
        return lambda *arguments, stream: self.calls.append(("direct", grid, arguments, stream))


class Kernel:
    """Stands for a function with ``triton.jit``: its first launch compiles it, with whatever it is given."""

    arg_names = ("x", "n", "factor", "BLOCK", "FLAG")

    def __init__(self) -> None:
        self.calls: list = []

    def __getitem__(self, grid):
        def own(*arguments, **constants):
            self.calls.append(("own", grid, arguments, constants))
            return Compiled(self.calls)

        return own


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(_triton_launch, "on", lambda device: nullcontext())
    monkeypatch.setattr(_triton_launch, "stream", lambda device: 7)
    monkeypatch.setattr(_triton_launch, "_compiled", {})
    return Kernel()


def how(kernel) -> list[str]:
    return [call[0] for call in kernel.calls]


def test_the_second_launch_of_a_kind_is_direct_with_all_arguments_in_their_order(kernel):
    x = torch.zeros(64)
    for programs, factor in ((3, 0.5), (4, 0.25)):  # numbers with a fraction are not compiled in
        _triton_launch.launch(kernel, programs, CUDA, x, 32, factor, FLAG=True, BLOCK=16, num_warps=4)
    assert kernel.calls[0] == ("own", (3,), (x, 32, 0.5), {"FLAG": True, "BLOCK": 16, "num_warps": 4})
    assert kernel.calls[1] == ("direct", (4, 1, 1), (x, 32, 0.25, 16, True), 7)


@pytest.mark.parametrize(
    "other",
    [
        (torch.zeros(64)[1:], 32, 0.5),  # not aligned
        (torch.zeros(64, dtype=torch.bfloat16), 32, 0.5),
        (None, 32, 0.5),
        (torch.zeros(64), 1, 0.5),  # 1 is compiled in
        (torch.zeros(64), 33, 0.5),  # no multiple of 16
        (torch.zeros(64), 2**31, 0.5),  # needs 64 bits
    ],
)
def test_what_triton_compiles_anew_is_not_launched_directly(kernel, other):
    for arguments in ((torch.zeros(64), 32, 0.5), other, other):
        _triton_launch.launch(kernel, 1, CUDA, *arguments, BLOCK=16, FLAG=True)
    assert how(kernel) == ["own", "own", "direct"]


def test_constants_devices_and_kernels_are_told_apart(kernel):
    x = torch.zeros(64)
    for device, block, warps in ((CUDA, 16, 4), (CUDA, 32, 4), (CUDA, 16, 8), (torch.device("cuda", 1), 16, 4)):
        _triton_launch.launch(kernel, 1, device, x, 32, 0.5, BLOCK=block, FLAG=True, num_warps=warps)
    assert how(kernel) == ["own"] * 4
    other = Kernel()
    _triton_launch.launch(other, 1, CUDA, x, 32, 0.5, BLOCK=16, FLAG=True, num_warps=4)
    assert how(other) == ["own"]


def test_the_interpreter_runs_every_call(kernel):
    for _ in range(2):
        _triton_launch.launch(kernel, 1, torch.device("cpu"), torch.zeros(64), 32, 0.5, BLOCK=16, FLAG=True)
    assert how(kernel) == ["own", "own"]


def test_kinds_are_those_that_triton_tells_apart():
    """Whatever Triton's own specialisation tells apart has another kind here."""
    pytest.importorskip("triton")
    from triton._C.libtriton import native_specialize_impl
    from triton.backends.compiler import BaseBackend

    aligned = torch.zeros(256, dtype=torch.float32)
    samples = [0, 1, -1, 2, 16, 17, 48, 2**31 - 1, 2**31, 2**31 + 16, -(2**31), -(2**31) - 16, 2**40, 2**63, 0.5, None]
    samples += [aligned, aligned[1:], aligned[4:], aligned.bfloat16(), aligned.half(), aligned.long(), aligned.bool()]
    seen: dict = {}
    for sample in samples:
        told = native_specialize_impl(BaseBackend, sample, False, True, True)
        kind = _triton_launch._kind(sample)
        assert seen.setdefault(kind, told) == told
