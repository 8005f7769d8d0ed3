"""The k largest logits, and the mass of all other classes together."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from typing_extensions import override

from kdx.capture import LOGITS, Captured, Held
from kdx.errors import StoreError
from kdx.ops import SparseTargets
from kdx.store.content import Content, class_dtype, rounded

__all__ = ["TopK"]


class TopK(Content):
    """The k largest logits of each row with their classes, and the mass of the other classes: ``topk:K[@T]``.

    Stored are ``z_c`` of the top k, exact up to rounding, and ``L = log sum_{other c} exp(z_c / T)``. So at temperature
    T the top k and the tail as a whole have the teacher's probabilities, up to rounding, and the order within the tail
    is lost. They are read back as :class:`kdx.ops.SparseTargets`, from which soft targets and their like learn with all
    other classes as one (or as their option ``tail`` says); the logits of all classes are never made.

    For whatever else reads the tensor, every other class gets the logit ``T (L - log(C - k))``: the mass that the tail
    has in ``softmax(z / T)``, spread evenly over it. **Bias**: a student is pulled to a flat tail.

    At another temperature T' the classes of the top k keep their right proportions to each other, but the tail gets too
    much mass above T and too little below (Jensen's inequality for ``p^(T/T')``): its odds against the top k are off by
    a factor between 1 and ``(C - k)^(1 - T/T')``. No scalar of a row tells the mass at all temperatures, so this cannot
    be undone: store with the temperature you distil at. A scheme refuses another ``temperature`` of a component that
    reads the top classes alone, and warns (:class:`kdx.errors.StoreWarning`) where one learns from the tensor. A tail
    of nothing but -inf stays -inf. A class of -1 stands for one that a row has not, as imported ones may.

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
        known = which >= 0
        others = classes - known.sum(-1, keepdim=True)
        rest = self.at * (tail - others.clamp(min=1).log())  # [..., 1]
        dense = rest.expand(*rest.shape[:-1], classes + 1).clone()  # the last for what is missing
        dense.scatter_(-1, torch.where(known, which.long(), classes), values.float())
        return {LOGITS: dense[..., :classes].movedim(-1, self.axis(dense.dim()))}

    @override
    def held(self, stored: Mapping[str, Tensor], classes: int, places: Tensor | None) -> Held | None:
        if self.k >= classes:
            return None
        values, which, tail = (stored[f"topk.{part}"] for part in ("values", "classes", "tail"))
        z = torch.cat([values.double() / self.at, tail.double()], -1)
        logprobs = z.log_softmax(-1).float()  # of the top k and of all others as one
        valid = which >= 0
        if places is not None:
            valid = valid & places[..., None]
        return SparseTargets(
            which.long().clamp(min=0),
            logprobs[..., :-1],
            logprobs[..., -1],
            valid=None if bool(valid.all()) else valid,
            temperature=self.at,
        )
