"""The surprisal of the tokens that are there: minus the logarithm of their probability, in chunks of rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from kdx.batch import IGNORE
from kdx.linear_logits import LinearLogits
from kdx.ops import linear_kl

__all__ = ["row_chunks", "token_surprisals"]

CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}
"""Device -> bytes of the float copies of logits at a time."""


def row_chunks(rows: Tensor, width: int, size: int) -> Iterator[Tensor]:
    """Row numbers ``[K]`` in parts, so that the floats of a part's rows fit into the room of their device.

    Args:
        rows: int64, the numbers.
        width: floats that a row needs at a time.
        size: bytes of one.
    """
    room = CHUNK_BYTES.get(rows.device.type, CHUNK_BYTES["cuda"])
    yield from torch.split(rows, max(1, room // max(1, width * size)))


def token_surprisals(logits: Tensor | LinearLogits, labels: Tensor) -> Tensor:
    """``-log softmax(z)[y]`` of each token, in float32 (float64 stays).

    The logits are never copied whole: rows are widened a chunk at a time, and the gradient is made in the dtype of the
    logits. Rows without a label are not read. Of a token that is nearly sure it is exact, as it is the logarithm of
    1 plus the odds against it.

    Args:
        logits: ``[..., V]``, any float dtype, or hidden states and the output layer that they go through
            (:func:`kdx.ops.linear_kl` then makes a chunk of the logits at a time).
        labels: int64 ``[...]``, token ids; ``-100`` for none.

    Returns:
        ``[...]``, 0 where there is no label, with gradient to the logits, or to hidden states and output layer.

    Example:
        >>> import torch
        >>> token_surprisals(torch.zeros(3, 4), torch.tensor([0, 3, -100])).tolist()
        [1.3862943649291992, 1.3862943649291992, 0.0]
    """
    if isinstance(logits, LinearLogits):
        return linear_kl(
            logits.hidden,
            logits.weight,
            None,
            student_bias=logits.bias,
            student_scale=logits.scale,
            student_softcap=logits.softcap,
            labels=labels,
            alpha=0.0,
            reduction="none",
        )
    rows = logits.reshape(-1, logits.shape[-1])
    found: Tensor = _Surprisals.apply(rows, labels.reshape(-1))  # type: ignore[no-untyped-call]
    return found.reshape(labels.shape)


def labelled_rows(labels: Tensor) -> Tensor:
    """The numbers of the rows with a label; of all rows in a compiled graph, whose shapes do not follow values."""
    if torch.compiler.is_compiling():
        return torch.arange(len(labels), device=labels.device)
    return (labels != IGNORE).nonzero().squeeze(1)


class _Surprisals(torch.autograd.Function):
    """Rows ``[R, V]`` and labels ``[R]`` to surprisals ``[R]``."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        ctx.save_for_backward(logits, labels)
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        found = torch.zeros(labels.shape, dtype=dtype, device=logits.device)
        for at in row_chunks(labelled_rows(labels), 2 * logits.shape[1], found.element_size()):
            z, y, none = _read(logits, labels, at, dtype)
            against = torch.logsumexp(z.scatter(1, y, -torch.inf), 1) - z.gather(1, y).squeeze(1)  # the log of the odds
            each = torch.logaddexp(against, torch.zeros_like(against))
            found = found.index_copy(0, at, each.masked_fill(none, 0.0))
        return found

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        logits, labels = ctx.saved_tensors
        gradient = torch.zeros_like(logits, memory_format=torch.contiguous_format)
        for at in row_chunks(labelled_rows(labels), 3 * logits.shape[1], upstream.element_size()):
            z, y, none = _read(logits, labels, at, upstream.dtype)
            others = z.softmax(1).scatter(1, y, 0.0)
            each = others.scatter(1, y, -others.sum(1, keepdim=True)) * upstream[at].unsqueeze(1)
            gradient.index_copy_(0, at, each.masked_fill(none.unsqueeze(1), 0.0).to(logits.dtype))
        return gradient, None


def _read(logits: Tensor, labels: Tensor, at: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Rows in full precision, their labels ``[K, 1]`` and which have none."""
    y = labels[at]
    none = y == IGNORE
    return logits[at].to(dtype), y.masked_fill(none, 0).unsqueeze(1), none
