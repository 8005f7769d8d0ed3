"""The tensors that a sigmoid gave, while models run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

__all__ = ["Sigmoids"]


class Sigmoids(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    """Knows, within its block, which tensors a sigmoid gave: values in [0, 1] alone do not tell them from logits.

    Example:
        >>> import torch
        >>> with Sigmoids() as seen:
        ...     gate = torch.sigmoid(torch.ones(3))
        ...     product = gate * 0.5
        >>> seen.gave(gate), seen.gave(product)
        (True, False)
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found: list[Tensor] = []

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.sigmoid.default, torch.ops.aten.sigmoid_.default):
            self._found.append(result.detach())
        return result

    def gave(self, outputs: Tensor) -> bool:
        """Whether these outputs are what a sigmoid gave, whatever their view."""
        return any(found.numel() == outputs.numel() and found.data_ptr() == outputs.data_ptr() for found in self._found)
