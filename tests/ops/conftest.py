"""The backends a kernel test runs on: all four by name, each skipped with its reason where it cannot run."""

from __future__ import annotations

import os

import pytest
import torch

from kdx.ops import _dispatch

NAMES = ("reference", "cpu", "triton", "cuda")


def _require(op: str, name: str, device: str = "cpu") -> None:
    x = torch.zeros(2, 2, device=device)
    reason = _dispatch._why_not(op, name, (x, x), auto=False)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")


@pytest.fixture(params=NAMES)
def backend_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def require():
    """``require(op, backend)`` skips the test with the reason where that backend cannot run CPU tensors here."""
    return _require


@pytest.fixture
def interpreted() -> bool:
    """Whether Triton kernels run in the interpreter (TRITON_INTERPRET=1 before triton is imported)."""
    return os.environ.get("TRITON_INTERPRET") == "1"
