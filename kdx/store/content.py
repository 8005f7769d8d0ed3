"""The contents of a store: their base, and whole tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor
from typing_extensions import override

from kdx.capture import LOGITS, Captured, Held
from kdx.errors import StoreError
from kdx.layout import Layout, UnknownLayout
from kdx.responses import Responses

__all__ = ["DTYPES", "Content", "Whole", "class_dtype", "rounded"]

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
"""Dtypes that numbers are stored in, by the names that users write."""


class Content(ABC):
    """Turns one tap into tensors with one row per sample, and back.

    Attributes:
        tap: the tap as written, possibly a glob.
        class_dim: axis of the classes in the logits, where :class:`kdx.responses.Responses` does not tell it.
        temperature: of an unbiased estimate (see :class:`kdx.Captured`), else None.
    """

    tap: str = LOGITS
    temperature: float | None = None
    class_dim: int | None = None

    def axis(self, dims: int) -> int:
        """The class axis of logits with so many dimensions."""
        return Responses(class_dim=self.class_dim).axis([1] * dims)

    def tail_temperature(self, classes: int) -> float | None:  # most contents store every class by itself
        """The temperature at which the mass of classes that are stored as one is right, None if there are none."""
        return None

    def layout(self, stored: str, teacher: Captured) -> Layout | UnknownLayout | None:
        """The meaning of the axes of a tensor to be stored, None where only its shape tells it.

        The logits of sparse contents have their classes last, whatever their axis was.
        """
        return None

    @abstractmethod
    def encode(self, teacher: Captured, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Tensor]:
        """Name -> ``[N, ...]``, to be written."""

    @abstractmethod
    def decode(self, stored: Mapping[str, Tensor], classes: int) -> dict[str, Tensor]:
        """Tap -> fp32 tensor, from the result of :meth:`encode`."""

    def held(self, stored: Mapping[str, Tensor], classes: int, places: Tensor | None) -> Held | None:
        """The logits as knowledge reads them that needs no tensor of all classes; None: there is another way only.

        Args:
            stored: the result of :meth:`encode`.
            classes: number of classes.
            places: of sequences, where there is a token, bool ``[N, L]``; None: everywhere.
        """
        return None


class Whole(Content):
    """A tap as it is, rounded to the store's dtype: ``logits`` or ``features:TAP``."""

    def __init__(self, tap: str = LOGITS) -> None:
        self.tap = tap

    @override
    def encode(self, teacher: Captured, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Tensor]:
        names = teacher.patterns.get(self.tap, (self.tap,))
        return {f"whole.{name}": rounded(teacher[name], dtype, name) for name in names}

    @override
    def layout(self, stored: str, teacher: Captured) -> Layout | UnknownLayout | None:
        name = stored.removeprefix("whole.")
        if name == LOGITS and teacher[name].dim() == 3:
            return Layout("nlc" if self.axis(3) == 2 else "ncl")
        return teacher.layouts.get(name)

    @override
    def decode(self, stored: Mapping[str, Tensor], classes: int) -> dict[str, Tensor]:
        return {name.removeprefix("whole."): value.float() for name, value in stored.items()}


def rounded(values: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Values in the store's dtype.

    Raises:
        StoreError: a value is NaN, or finite and too large for the dtype.
    """
    result = values.to(dtype)
    if bool(result.isnan().any()):
        raise StoreError(f"the teacher's {name!r} hold NaN; a store of them would teach nothing. Check the teacher")
    if bool((result.isinf() & values.isfinite()).any()):
        raise StoreError(
            f"the teacher's {name!r} reach {values.abs().max().item():.3g}, too large for {dtype}; take dtype bf16 or "
            "fp32"
        )
    return result


def class_dtype(classes: int) -> torch.dtype:
    """The smallest dtype for a class number."""
    return torch.int16 if classes <= 1 << 15 else torch.int32
