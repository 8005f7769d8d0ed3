"""The k largest logits, and the mass of all other classes together."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from typing_extensions import override

from kdx.capture import LOGITS, Captured
from kdx.errors import StoreError
from kdx.store.content import Content, class_dtype, rounded

__all__ = ["TopK"]


class TopK(Content):
    """The k largest logits of each row with their classes, and the mass of the other classes: ``topk:K[@T]``.

    Stored are ``z_c`` of the top k, exact up to rounding, and ``L = log sum_{other c} exp(z_c / T)``. Read back, every
    other class gets the logit ``T (L - log(C - k))``: the mass that the tail has in ``softmax(z / T)``, spread evenly
    over it. So at temperature T the top k and the tail as a whole have the teacher's probabilities, up to rounding, and
    the order within the tail is lost. **Bias**: a student is pulled to a flat tail.

    At another temperature T' the classes of the top k keep their right proportions to each other, but the tail gets too
    much mass above T and too little below (Jensen's inequality for ``p^(T/T')``): its odds against the top k are off by
    a factor between 1 and ``(C - k)^(1 - T/T')``. No scalar of a row tells the mass at all temperatures, so this cannot
    be undone: store with the temperature you distil at. A scheme warns (:class:`kdx.errors.StoreWarning`) where a
    component with another ``temperature`` learns from it. A tail of nothing but -inf stays -inf.

    Args:
        k: number of classes to keep, 1 .. C.
        temperature: T, at which the tail's mass is exact.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[4.0, 1.0, 3.0, 0.0]])
        >>> content = TopK(2)
        >>> stored = content.encode(Captured({"logits": logits}), torch.float32, torch.Generator())
        >>> back = content.decode(stored, classes=4)["logits"]
        >>> [round(p, 4) for p in logits.softmax(1)[0].tolist()]
        [0.6964, 0.0347, 0.2562, 0.0128]
        >>> [round(p, 4) for p in back.softmax(1)[0].tolist()]
        [0.6964, 0.0237, 0.2562, 0.0237]
    """

    def __init__(self, k: int, temperature: float = 1.0) -> None:
        self.k = k
        self.at = temperature

    @override
    def tail_temperature(self, classes: int) -> float | None:
        return self.at if self.k < classes else None

    @override
    def encode(self, teacher: Captured, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Tensor]:
        z = teacher.logits.double()
        z = z.movedim(self.axis(z.dim()), -1)  # [..., C]
        classes = z.shape[-1]
        if self.k > classes:
            raise StoreError(f"topk:{self.k} wants more classes than the teacher's {classes}; take logits")
        values, which = z.topk(self.k)
        tail = (z / self.at).scatter(-1, which, -torch.inf).logsumexp(-1, keepdim=True)
        return {
            "topk.values": rounded(values, dtype, LOGITS),
            "topk.classes": which.to(class_dtype(classes)),
            "topk.tail": tail.float(),  # in fp32: an error here moves the mass of the whole tail
        }

    @override
    def decode(self, stored: Mapping[str, Tensor], classes: int) -> dict[str, Tensor]:
        values, which, tail = (stored[f"topk.{part}"] for part in ("values", "classes", "tail"))
        rest = self.at * (tail - math.log(max(1, classes - self.k)))  # [..., 1]
        dense = rest.expand(*rest.shape[:-1], classes).clone()
        return {LOGITS: dense.scatter(-1, which.long(), values.float()).movedim(-1, self.axis(dense.dim()))}
