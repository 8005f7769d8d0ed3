"""Logits that are not held: hidden states and the output layer that they go through."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["LinearLogits"]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class LinearLogits:
    """Logits ``[..., V]`` as the hidden states ``[..., H]`` they are made of and the output layer, never held whole.

    They are ``z = scale (hidden weight' + bias)``, then ``softcap tanh(z / softcap)`` where that is given, as in
    :func:`kdx.ops.linear_kl`.

    Args:
        hidden: hidden states ``[..., H]``, of any float dtype.
        weight: of the output layer, ``[V, H]``.
        bias: of the output layer, ``[V]``.
        scale: what the logits are multiplied by, the bias included.
        softcap: c > 0 of logits that are capped, after the scale; None: they are not.

    Raises:
        ValueError: shapes that do not fit, or numbers out of range.

    Example:
        >>> logits = LinearLogits(torch.ones(2, 5, 3), torch.ones(7, 3))
        >>> list(logits.shape), logits.dense()[0, 0, 0].item()
        ([2, 5, 7], 3.0)
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        if self.weight.dim() != 2 or self.hidden.dim() < 1 or self.weight.shape[1] != self.hidden.shape[-1]:
            raise ValueError(
                f"weight: expected [V, H] for hidden states [..., H], as the weight of nn.Linear is, got "
                f"{list(self.weight.shape)} for {list(self.hidden.shape)}"
            )
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            raise ValueError(f"bias: expected [{self.weight.shape[0]}], one per class, got {list(self.bias.shape)}")
        if self.softcap is not None and not 0 < self.softcap < math.inf:
            raise ValueError(f"softcap: expected a number above 0, or None where there is none, got {self.softcap}")
        if not math.isfinite(self.scale):
            raise ValueError(f"scale: expected a finite number, got {self.scale}")

    @property
    def shape(self) -> torch.Size:
        """That of the logits, ``[..., V]``."""
        return torch.Size((*self.hidden.shape[:-1], self.weight.shape[0]))

    def dim(self) -> int:
        """Number of dimensions of the logits."""
        return self.hidden.dim()

    def numel(self) -> int:
        """How many logits there are."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return len(self.hidden)

    @property
    def device(self) -> torch.device:
        """Where the hidden states are."""
        return self.hidden.device

    @property
    def dtype(self) -> torch.dtype:
        """That of the logits: float32 also of halves, float64 where an operand is."""
        return torch.promote_types(torch.promote_types(self.hidden.dtype, self.weight.dtype), torch.float32)

    def dense(self) -> Tensor:
        """The logits, made whole in :attr:`dtype` of operands that are widened before their product."""
        acc = self.dtype
        with torch.autocast(self.hidden.device.type, enabled=False):
            z = self.hidden.to(acc) @ self.weight.to(acc).T
            if self.bias is not None:
                z = z + self.bias.to(acc)
            z = z if self.scale == 1 else self.scale * z
            return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)

    def of_rows(self, which: slice | Tensor) -> LinearLogits:
        """Those of some rows: what a slice, numbers or a bool mask pick of the hidden states."""
        return replace(self, hidden=self.hidden[which])

    def of_classes(self, count: int) -> LinearLogits:
        """Those of the first so many classes, on views of the output layer."""
        return replace(self, weight=self.weight[:count], bias=None if self.bias is None else self.bias[:count])

    def detach(self) -> LinearLogits:
        """The same without a graph, the output layer included."""
        bias = None if self.bias is None else self.bias.detach()
        return replace(self, hidden=self.hidden.detach(), weight=self.weight.detach(), bias=bias)

    def to(self, device: torch.device | str) -> LinearLogits:
        """The same on a device, in the dtypes they have."""
        bias = None if self.bias is None else self.bias.to(device)
        return replace(self, hidden=self.hidden.to(device), weight=self.weight.to(device), bias=bias)
