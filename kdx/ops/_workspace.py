"""Scratch of the GPU launches: zeroed once, left ready by every launch, one for each device and stream."""

from __future__ import annotations

import torch
from torch import Tensor

_zeroed: dict[tuple[torch.device, int], Tensor] = {}


def stream(device: torch.device) -> int:
    """The current CUDA stream of ``device`` as an integer; 0 on a CPU."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def zeroed(device: torch.device, count: int) -> Tensor:
    """At least ``count`` bytes for the launches of the current stream of ``device``.

    They begin with a counter that is zero between launches: a kernel that counts in it has to bring it back to zero.
    A CUDA graph gets its own bytes, zeroed whenever it is replayed: it may be replayed on several streams at once.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.uint8, device=device)
    key = (device, stream(device))
    found = _zeroed.get(key)
    if found is None or found.numel() < count:
        found = _zeroed[key] = torch.zeros(max(2 * count, 4096), dtype=torch.uint8, device=device)
    return found
