"""Fixtures that let backend "cuda" run on CPU tensors through the emulation; a conftest.py imports both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.emulation import harness


@pytest.fixture(scope="session")
def emulated_cuda_module() -> Any:
    """`kdx_ext._cuda` built by g++ against the host emulation: every .cu of csrc/cuda with its bindings."""
    if harness.compiler() is None:
        pytest.skip("no C++ compiler to build the emulation with")
    csrc = harness.ROOT / "csrc"
    return harness.module([*sorted(csrc.glob("cuda/*.cu")), *sorted(csrc.glob("bind/cuda_*.cpp"))], "_cuda")


@pytest.fixture
def emulated_cuda(emulated_cuda_module: Any) -> Iterator[harness.Emulation]:
    """Inside a test, backend "cuda" runs CPU tensors in the emulation; the value sets its order and architecture."""
    from kdx.ops import _launch, _native

    _launch._zeroed.clear()
    with _native.override("cuda", emulated_cuda_module):
        yield harness.Emulation(emulated_cuda_module.__file__)
