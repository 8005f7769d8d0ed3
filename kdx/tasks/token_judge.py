"""The loss and the likeliest token of every place of a language model, computed once for all metrics of a batch."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdx.batch import IGNORE
from kdx.linear_logits import LinearLogits

__all__ = ["TokenJudge"]

CHUNK_BYTES = 64 << 20
"""Bytes of the logits that are made at a time of those held as hidden states and a head."""


class TokenJudge:
    """Gives metrics what they are computed from: ``(losses [M], targets [M])`` or ``(tokens [M], targets [M])``.

    Logits that are held as hidden states and a head are made a few labelled rows at a time. The outputs of one batch
    are judged once, however many metrics ask.

    Args:
        aligned: ``(outputs, targets) -> targets`` of the outputs' places, -100 where none is predicted, checked.
    """

    def __init__(self, aligned: Callable[[Any, Tensor], Tensor]) -> None:
        self.aligned = aligned
        self._of: tuple[weakref.ref[Any], weakref.ref[Any], int] | None = None
        self._found: tuple[Tensor, Tensor, Tensor] | None = None

    def losses(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The negative log likelihood ``[M]`` of the labelled tokens, and those tokens ``[M]``."""
        losses, _, wanted = self._judged(outputs, targets)
        return losses, wanted

    def tokens(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest tokens ``[M]`` at the labelled places, and those tokens ``[M]``."""
        _, tokens, wanted = self._judged(outputs, targets)
        return tokens, wanted

    def __getstate__(self) -> dict[str, Any]:
        return {"aligned": self.aligned, "_of": None, "_found": None}

    def _judged(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        version = outputs._version if isinstance(outputs, Tensor) and not outputs.is_inference() else 0
        known = self._of is not None and self._of[0]() is outputs and self._of[1]() is targets
        if not known or self._of is None or self._of[2] != version or self._found is None:
            flat = self.aligned(outputs, targets).flatten()
            which = (flat != IGNORE).nonzero().squeeze(1)
            wanted = flat[which]
            parts = [(_cross_entropy(z, wanted[at]), z.argmax(1)) for at, z in _logits_at(outputs, which)]
            losses, tokens = zip(*parts, strict=True) if parts else ([wanted.float()], [wanted])
            self._of = weakref.ref(outputs), weakref.ref(targets), version
            self._found = torch.cat([*losses]), torch.cat([*tokens]), wanted
        return self._found


def _logits_at(outputs: Any, which: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The places of ``which`` that come next, and the logits there, ``[M, V]``."""
    if isinstance(outputs, Tensor):
        if len(which):
            yield slice(None), outputs.flatten(0, 1)[which]
        return
    rows = LinearLogits(outputs.hidden.flatten(0, 1), outputs.weight, outputs.bias, outputs.scale, outputs.softcap)
    size = max(CHUNK_BYTES // (outputs.shape[-1] * outputs.dtype.itemsize), 1)
    for start in range(0, len(which), size):
        at = slice(start, start + size)
        yield at, rows.of_rows(which[at]).dense()


def _cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    return F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), wanted, reduction="none")
