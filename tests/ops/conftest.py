"""What kernel tests share: the backends as a parameter, each skipped with its reason where it cannot run."""

from __future__ import annotations

import pytest
import torch

from kdx.errors import BackendError
from kdx.ops import _dispatch
from tests.emulation.fixtures import emulated_cuda, emulated_cuda_module

__all__ = ["emulated_cuda", "emulated_cuda_module"]

BACKENDS = ("reference", "cpu", "triton", "cuda")


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


@pytest.fixture(params=BACKENDS)
def backend_name(request: pytest.FixtureRequest) -> str:
    """Each backend's name, whether or not it can run; without a GPU "cuda" runs in the host emulation."""
    if request.param == "cuda" and not torch.cuda.is_available():
        request.getfixturevalue("emulated_cuda")
    return str(request.param)


@pytest.fixture
def backend(backend_name: str, require) -> str:
    """Each backend of softmax_kl that can run here."""
    require("softmax_kl", backend_name)
    return backend_name
