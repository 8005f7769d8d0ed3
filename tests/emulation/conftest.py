"""The emulated CUDA backend, for the tests of this folder."""

from tests.emulation.fixtures import emulated_cuda, emulated_cuda_module

__all__ = ["emulated_cuda", "emulated_cuda_module"]
