"""What kernel tests share: the backends as a parameter, each skipped with its reason where it cannot run."""

from __future__ import annotations

import os
from importlib import import_module

import pytest
import torch

from kdx.errors import BackendError
from kdx.ops import BACKENDS, _dispatch
from tests.emulation.fixtures import emulated_cuda, emulated_cuda_module

__all__ = ["emulated_cuda", "emulated_cuda_module"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tests of small tensors spend their time waking threads; those about threads set their own number."""
    torch.set_num_threads(1)


@pytest.fixture
def require():
    """``require(op, backend)`` skips the test with the reason where that backend cannot run CPU tensors here."""

    def check(op: str, name: str) -> None:
        x = torch.zeros(2, 2)
        try:
            _dispatch.select(op, name, x, x)
        except BackendError as error:
            pytest.skip(str(error))

    return check


@pytest.fixture(params=reversed(BACKENDS))
def backend_name(request: pytest.FixtureRequest) -> str:
    """Each backend's name, whether or not it can run; without a GPU "cuda" runs in the host emulation."""
    if request.param == "cuda" and not torch.cuda.is_available():
        request.getfixturevalue("emulated_cuda")
    return str(request.param)


@pytest.fixture
def backend(request: pytest.FixtureRequest, backend_name: str, require) -> str:
    """Each backend that can run here the op which the module names in OP; softmax_kl where it names none."""
    if backend_name == "cuda":  # the tensors of these tests are on the CPU, on a machine with a GPU as well
        request.getfixturevalue("emulated_cuda")
    require(getattr(request.module, "OP", "softmax_kl"), backend_name)
    return backend_name


@pytest.fixture(params=["triton", "cuda"])
def on_gpu(request: pytest.FixtureRequest) -> str:
    """Each backend that can run on this GPU the op which the module names in OP."""
    x = torch.zeros(2, 2, device="cuda")
    try:
        _dispatch.select(request.module.OP, request.param, x, x)
    except BackendError as error:
        pytest.skip(str(error))
    return str(request.param)


@pytest.fixture
def wide_tiles(monkeypatch: pytest.MonkeyPatch, backend_name: str) -> None:
    """As few programs as can be in Triton's interpreter, whose time goes by the number of operations."""
    if backend_name == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
        triton = import_module("kdx.ops._rkd.triton")
        monkeypatch.setattr(triton, "angle_tile", lambda n: max(16, 1 << (n - 1).bit_length()))
        monkeypatch.setattr(triton, "distance_tile", lambda n: min(128, max(16, 1 << (n - 1).bit_length())))
