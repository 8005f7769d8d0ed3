"""The parts that launchers share: addresses for kernels, checks before one is handed over, the stream, scratch.

Kernels read plain arrays, so a launcher checks what they rely on; what a user may pass is checked once, in ``api.py``.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from kdx.errors import BackendError
from kdx.ops._dtypes import CODES, accumulator

__all__ = [
    "address",
    "check_divergence",
    "check_logits",
    "check_upstream",
    "dense",
    "on",
    "points",
    "stream",
    "strided",
    "zeroed",
]


def address(x: Tensor | None) -> int:
    """Where a tensor's first element lies; 0, which is nullptr, for None."""
    return 0 if x is None else x.data_ptr()


def strided(x: Tensor | None) -> tuple[int, ...]:
    """Address and strides of logits ``[O, C, I]``; zeros for None."""
    return (0, 0, 0, 0) if x is None else (x.data_ptr(), *x.stride())


def points(x: Tensor) -> tuple[int, ...]:
    """Address, dtype, columns, row and column stride of points ``[N, D]``: ``RkdInput`` of csrc/include/kdx/rkd.h."""
    return x.data_ptr(), CODES[x.dtype], x.shape[1], *x.stride()


def dense(x: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """``x`` without gaps, and an empty tensor that lies in memory as it does; a copy only where there are gaps."""
    out = torch.empty_like(x, dtype=dtype)
    if x.stride() != out.stride():  # empty_like has no gaps
        x = x.contiguous()
        out = torch.empty_like(x, dtype=dtype)
    return x, out


def dense_in_memory(x: Tensor) -> bool:
    """Whether the elements of ``x`` lie in memory without gaps and overlaps, in any order of its dimensions."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def check_logits(
    student: Tensor,
    teacher: Tensor,
    kl_rows: Tensor | None,
    labels: Tensor | None,
    ce_rows: Tensor | None,
    ce_losses: Tensor | None = None,
) -> None:
    """Raise ValueError unless the teacher is like the student, and the others hold one number for each of its rows."""
    if teacher.shape != student.shape or teacher.dtype != student.dtype or teacher.device != student.device:
        raise ValueError(
            f"teacher: expected {tuple(student.shape)} {student.dtype} on {student.device} as the student is, "
            f"got {tuple(teacher.shape)} {teacher.dtype} on {teacher.device}"
        )
    if kl_rows is not None:
        _check_rows("kl_rows", kl_rows, accumulator(student), student)
    if labels is not None:
        _check_rows("labels", labels, torch.int64, student)
    if ce_rows is not None:
        _check_rows("ce_rows", ce_rows, accumulator(student), student)
    if ce_losses is not None:
        _check_rows("ce_losses", ce_losses, accumulator(student), student)


def _check_rows(name: str, tensor: Tensor, dtype: torch.dtype, like: Tensor) -> None:
    rows = like.shape[0] * like.shape[2]
    if tensor.dtype != dtype or tensor.device != like.device or tensor.numel() != rows or not tensor.is_contiguous():
        raise ValueError(
            f"{name}: expected {rows} contiguous {dtype} on {like.device}, got {tuple(tensor.shape)} {tensor.dtype} "
            f"with strides {tensor.stride()} on {tensor.device}"
        )


def check_upstream(grad: Tensor, upstream: Tensor) -> None:
    """Raise ValueError unless ``upstream`` is one number in the dtype in which ``grad`` is accumulated."""
    if upstream.dtype != accumulator(grad) or upstream.device != grad.device or upstream.numel() != 1:
        raise ValueError(
            f"upstream: expected one {accumulator(grad)} on {grad.device}, "
            f"got {tuple(upstream.shape)} {upstream.dtype} on {upstream.device}"
        )


_HERE = nullcontext()


def on(device: torch.device) -> AbstractContextManager[object]:
    """Launch on ``device``; nothing where it is the current one, or a CPU, where the emulation of CUDA runs."""
    if device.type != "cuda" or torch.cuda.current_device() == device.index:
        return _HERE
    return torch.cuda.device(device)


def stream(device: torch.device) -> int:
    """The current CUDA stream of ``device`` as an integer; 0 on a CPU."""
    return int(torch._C._cuda_getCurrentRawStream(device.index)) if device.type == "cuda" else 0


_zeroed: dict[tuple[torch.device, int], Tensor] = {}


def zeroed(device: torch.device, count: int) -> Tensor:
    """At least ``count`` bytes of scratch for the launches of the current stream of ``device``.

    Zeroed once and left ready by every launch: they begin with a counter that is zero between launches, and a kernel
    that counts in it has to bring it back to zero. A CUDA graph gets its own bytes, zeroed whenever it is replayed: it
    may be replayed on several streams at once.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.uint8, device=device)
    key = (device, stream(device))
    found = _zeroed.get(key)
    if found is None or found.numel() < count:
        found = _zeroed[key] = torch.zeros(max(2 * count, 4096), dtype=torch.uint8, device=device)
    return found


def check_divergence(module: Any, divergence: int, *, apart: bool = False) -> None:
    """Checks that a compiled module knows this divergence of softmax_kl, and the two terms of a loss ``apart``.

    Raises:
        BackendError: it was built when there were fewer.
    """
    few, whole = divergence >= getattr(module, "divergences", 3), apart and not hasattr(module, "terms_apart")
    if few or whole:
        missing = "skewed divergence" if few else "terms apart"
        raise BackendError(
            f"{module.__name__}: was built of older sources, which have no {missing}; run `pip install .`, or "
            "`python setup.py build_ext --inplace` in a checkout"
        )
