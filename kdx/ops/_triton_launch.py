"""Launches of Triton kernels; those compiled before skip Triton's own look-up, which takes longer than they do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdx.ops._launch import on, stream

__all__ = ["forget", "launch"]

_compiled: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...], Any]] = {}
"""Kernel, device, kinds of arguments and constants -> what was compiled, its constants in their order, the kernel."""


def forget() -> None:
    """Drops what is known of compiled kernels."""
    _compiled.clear()


def _kind(argument: Any) -> Any:
    """The kind of an argument to Triton: dtype and alignment of a tensor, three kinds of whole numbers in two sizes."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if type(argument) is int:
        return argument == 1, argument % 16 == 0, -(2**31) <= argument < 2**31, argument < 2**63
    return type(argument)


def launch(kernel: Any, programs: int, device: torch.device, *arguments: Any, **constants: Any) -> None:
    """Launches ``kernel`` with so many programs on the current stream of ``device``.

    The first call for a kind of arguments is Triton's own, which compiles it; later ones hand the arguments to what it
    has compiled. On a CPU the interpreter runs every call.

    Args:
        kernel: a function with ``triton.jit``.
        programs: how many.
        device: that of the tensors.
        *arguments: tensors, numbers and None, as many as the kernel has before its constants.
        **constants: its ``tl.constexpr`` arguments, and options of the compiler as ``num_warps``.
    """
    if device.type == "cpu":
        kernel[(programs,)](*arguments, **constants)
        return
    key = (id(kernel), device, *map(_kind, arguments), *constants.items())
    found = _compiled.get(key)
    with on(device):
        if found is None:
            compiled = kernel[(programs,)](*arguments, **constants)
            names = kernel.arg_names[len(arguments) :]
            _compiled[key] = compiled, tuple(constants[name] for name in names), kernel
        else:
            compiled, rest, _ = found
            compiled[(programs, 1, 1)](*arguments, *rest, stream=stream(device))
