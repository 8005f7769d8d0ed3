"""A teacher whose outputs are kept for its likeliest classes alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import LOGITS, Captured, Taps
from kdx.linear_logits import LinearLogits
from kdx.ops import SparseTargets
from kdx.ranges import check_number, check_whole
from kdx.responses import Responses
from kdx.teachers.base import Teacher
from kdx.teachers.frozen import as_teacher

__all__ = ["TopK", "top_classes"]

CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}
"""Device -> bytes of the float copies of logits at a time."""


def top_classes(
    logits: Tensor | LinearLogits, k: int, *, temperature: float = 1.0, vocabulary: int | None = None
) -> SparseTargets:
    """The k likeliest classes of each row of logits ``[..., V]``, with their log-probabilities at a temperature.

    Rows are widened to float32 (float64 stays), and those of hidden states and a head made, a chunk at a time.

    Args:
        logits: of any float dtype, their classes on the last axis.
        k: how many, at most as many as there are.
        temperature: T > 0.
        vocabulary: the first so many classes count; None: all.

    Returns:
        ids and log-probabilities ``[..., k]``, without gradient.

    Raises:
        ValueError: there are fewer classes than k.

    Example:
        >>> top = top_classes(torch.tensor([[0.2, 0.5, 0.3]]).log(), 2)
        >>> top.ids.tolist(), [round(p, 2) for p in top.logprobs.exp()[0].tolist()]
        ([[1, 2]], [0.5, 0.3])
    """
    shape = logits.shape[:-1]
    classes = logits.shape[-1] if vocabulary is None else min(vocabulary, logits.shape[-1])
    if classes < k:
        raise ValueError(f"top_k: expected at most the {classes} classes of the teacher, got {k}")
    with torch.no_grad():
        rows = logits.detach()
        flat = (
            LinearLogits(rows.hidden.flatten(0, -2), rows.weight, rows.bias, rows.scale, rows.softcap).of_classes(
                classes
            )
            if isinstance(rows, LinearLogits)
            else rows.reshape(-1, rows.shape[-1])[:, :classes]
        )
        room = CHUNK_BYTES.get(flat.device.type, CHUNK_BYTES["cuda"])
        ids, logprobs, tails = [], [], []
        for start in range(0, max(1, len(flat)), size := max(1, room // (8 * classes))):
            here = slice(start, start + size)
            z = flat.of_rows(here).dense() if isinstance(flat, LinearLogits) else flat[here]
            z = (z if z.dtype == torch.float64 else z.float()) / temperature
            top = z.topk(k, 1)
            ids.append(top.indices)
            total = z.logsumexp(1, keepdim=True)
            logprobs.append(top.values - total)
            tails.append(z.scatter_(1, top.indices, -torch.inf).logsumexp(1) - total.squeeze(1))
        return SparseTargets(
            torch.cat(ids).reshape(*shape, k),
            torch.cat(logprobs).reshape(*shape, k),
            torch.cat(tails).reshape(shape),
            temperature=temperature,
        )


class TopK(Teacher):
    """Another teacher, of whose outputs the k likeliest classes of each row are kept.

    They are :class:`kdx.ops.SparseTargets`, which ``soft-targets``, ``reverse-kl``, ``jsd`` and ``skew-kl`` compare
    with the student's logits in one pass over those (:func:`kdx.ops.topk_kl`, their option ``tail``), as they do with
    the top classes of a store. Other taps are handed on as they are. Other components that read the outputs are
    refused.

    Args:
        teacher: a model, held frozen, or any other teacher.
        k: how many classes of a row are kept.
        temperature: that their log-probabilities are taken at; the components have to have the same.
        vocabulary: the first so many classes count, where the model pads its vocabulary; None: all.

    Raises:
        ValueError: a number out of range; with the task, or in a call: classes that are not on the last axis, or fewer
            than k.

    Example:
        >>> teacher = TopK(nn.Linear(3, 5), 2)
        >>> captured = teacher(Batch(torch.ones(4, 3)))
        >>> list(captured.response("logits").ids.shape)
        [4, 2]
    """

    def __init__(
        self, teacher: nn.Module | Teacher, k: int, *, temperature: float = 1.0, vocabulary: int | None = None
    ) -> None:
        super().__init__()
        self.teacher = as_teacher(teacher)
        self.k = check_whole("k", k, least=1)
        self.temperature = check_number("temperature", temperature, above=0)
        self.vocabulary = None if vocabulary is None else check_whole("vocabulary", vocabulary, least=2)
        self.responses = Responses()

    @override
    def tap(self, names: Iterable[str]) -> None:
        self.teacher.tap([*names, LOGITS])

    @override
    def bind(self, responses: Responses) -> None:
        self.responses = responses
        self.teacher.bind(responses)

    @override
    def share_taps(self, taps: Taps) -> None:
        self.teacher.share_taps(taps)

    @property
    @override
    def teaches(self) -> bool:
        return self.teacher.teaches

    @override
    def forward(self, batch: Batch) -> Captured:
        return self._kept(self.teacher(batch))

    @override
    def captured_for(self, batch: Batch, student: Captured) -> Captured:
        return self._kept(self.teacher.captured_for(batch, student))

    def _kept(self, captured: Captured) -> Captured:
        answer = captured.response(LOGITS)
        if isinstance(answer, SparseTargets):
            raise ValueError("TopK: the teacher gives a few classes of each row already, as a store does; leave it out")
        if self.responses.axis(answer.shape) != answer.dim() - 1:
            raise ValueError(
                f"TopK: expected outputs with their classes on the last axis, got class axis "
                f"{self.responses.axis(answer.shape)} of {list(answer.shape)}; leave it out"
            )
        top = top_classes(answer, self.k, temperature=self.temperature, vocabulary=self.vocabulary)
        found = captured.having({name: value for name, value in captured.items() if name != LOGITS})
        found.held[LOGITS] = top
        found.later.pop(LOGITS, None)
        return found
