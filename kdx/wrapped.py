"""Models inside wrappers, and names without the prefixes that wrappers add."""

from __future__ import annotations

from torch import nn

__all__ = ["clean_name", "unwrap"]


def unwrap(model: nn.Module) -> nn.Module:
    """The user's module inside ``DistributedDataParallel`` and ``torch.compile`` wrappers."""
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module) or (
            type(model).__name__ in ("DistributedDataParallel", "DataParallel")
            and isinstance(inner := getattr(model, "module", None), nn.Module)
        ):
            model = inner
        else:
            return model


def clean_name(name: str) -> str:
    """A module or parameter name without the prefixes that torch.compile adds."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")
