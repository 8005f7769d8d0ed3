"""Sorted probabilities: the shape of the teacher's distribution, whatever its tokens are (ULD)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from kdx.batch import IGNORE, Batch
from kdx.capture import LOGITS, Captured
from kdx.knowledge.other_tokenizer import OtherTokenizer
from kdx.knowledge.token_surprisals import row_chunks
from kdx.losses import Mean
from kdx.ranges import check_number

__all__ = ["ULD", "sorted_distance"]


def sorted_distance(
    student: Tensor,
    teacher: Tensor,
    student_rows: Tensor | None = None,
    teacher_rows: Tensor | None = None,
    *,
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
) -> Tensor:
    """The sum of the differences between two distributions' probabilities, each sorted from the largest to the least.

    The smaller vocabulary is filled up with probabilities of 0. Rows are sorted in chunks, so that the floats of all
    rows are never there at once; the gradient is made in the dtype of the logits.

    Args:
        student: logits ``[S, V]``, any float dtype; computed in float32 (float64 stays).
        teacher: logits ``[T, V']``; they get no gradient.
        student_rows: int64 ``[K]``, the student's row of each pair; None: row k with row k.
        teacher_rows: the teacher's row of each pair.
        student_temperature: of the student's softmax.
        teacher_temperature: of the teacher's.

    Returns:
        ``[K]``, between 0 and 2, with gradient to the student.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.2, 0.0, 0.8]]).log()
        >>> round(sorted_distance(student, teacher).item(), 4)
        0.2
    """
    if student_rows is None or teacher_rows is None:
        student_rows = teacher_rows = torch.arange(len(student), device=student.device)
    rows = torch.stack([student_rows, teacher_rows])
    temperatures = student_temperature, teacher_temperature
    found: Tensor = _SortedDistance.apply(student, teacher.detach(), rows, *temperatures)  # type: ignore[no-untyped-call]
    return found


class _SortedDistance(torch.autograd.Function):
    """Logits ``[S, V]`` and ``[T, V']`` and the numbers of their rows ``[2, K]`` to distances ``[K]``."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, rows: Tensor, t_s: float, t_t: float) -> Tensor:
        ctx.save_for_backward(student, teacher, rows)
        ctx.temperatures = t_s, t_t
        found = [_compared(student, teacher, at, t_s, t_t)[2].abs().sum(1) for at in _parts(student, teacher, rows)]
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, rows = ctx.saved_tensors
        gradient = torch.zeros_like(student, memory_format=torch.contiguous_format)
        parts = _parts(student, teacher, rows)
        for at, g in zip(parts, torch.split(upstream, [at.shape[1] for at in parts]), strict=True):
            p, order, difference = _compared(student, teacher, at, *ctx.temperatures)
            sign = torch.zeros_like(p).scatter(1, order, difference[:, : p.shape[1]].sign())
            each = p * (sign - (p * sign).sum(1, keepdim=True)) * (g / ctx.temperatures[0]).unsqueeze(1)
            gradient.index_add_(0, at[0], each.to(student.dtype))
        return gradient, None, None, None, None


def _parts(student: Tensor, teacher: Tensor, rows: Tensor) -> list[Tensor]:
    """Row numbers ``[2, K]`` in parts whose floats fit into the room of the device."""
    width = 4 * (student.shape[1] + teacher.shape[1])  # logits, probabilities, and those sorted with their order
    sizes = [len(part) for part in row_chunks(rows[0], width, _dtype(student, teacher).itemsize)]
    return list(torch.split(rows, sizes, 1))


def _compared(student: Tensor, teacher: Tensor, at: Tensor, t_s: float, t_t: float) -> tuple[Tensor, Tensor, Tensor]:
    """The student's probabilities ``[K, V]``, their order, and by how much they, sorted, exceed the teacher's."""
    dtype = _dtype(student, teacher)
    p = (student[at[0]].to(dtype) / t_s).softmax(1)
    sorted_p, order = p.sort(1, descending=True)
    sorted_q = (teacher[at[1]].to(dtype) / t_t).softmax(1).sort(1, descending=True).values
    more = sorted_q.shape[1] - sorted_p.shape[1]
    return p, order, F.pad(sorted_p, (0, max(0, more))) - F.pad(sorted_q, (0, max(0, -more)))


def _dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in [each.dtype for each in tensors] else torch.float32


class ULD(OtherTokenizer):
    """The teacher's probabilities and the student's, each sorted: universal logit distillation between tokenizers.

    Loss: ``sum_i |p_s(i) - p_t(i)|``, where p(i) is the i-th largest probability of a token in ``[N, S, V]`` and
    ``[N, T, V']`` and the smaller vocabulary is filled up with 0; the mean over the pairs of places. It is between 0
    and 2, without ``T^2``. In the paper the cross-entropy weighs 1 and this 1.5. Gradients reach the student, in chunks
    of rows, so that no float copy of all logits is made.

    **Places are paired by their number**: the k-th learned token of a row's answer in the student with the k-th in the
    teacher, and the rest of the longer one is left out, as in the paper. From the first token on that the two
    tokenizers cut differently, both sides predict different pieces of the text; and as sorting forgets which token a
    probability belongs to, a student is taught how sure to be, not of what. ``alm`` compares the same text on both
    sides. The authors' code reads the outputs at the answer's own tokens, one place later than those that predict them,
    and averages within each row first; here places predict their tokens (``shift``) and all count alike.

    Args:
        student_temperature: of the student's softmax.
        teacher_temperature: of the teacher's softmax.
        alignment: the view of the batch that holds ``teacher_labels`` ``[N, T]``, see
            :class:`kdx.datasets.TwoVocabularies`.
        shift: whether the output at place t predicts the token at t + 1; None: what a task of tokens says, else yes.
        student: tap of the student's logits, ``[N, S, V]``.
        teacher: tap of the teacher's logits, ``[N, T, V']``.

    Raises:
        ValueError: a temperature that is not above 0; in a call, a batch that does not say which tokens are learned on
            both sides.

    Paper: Boizard et al., Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs, 2024,
    https://arxiv.org/abs/2402.12030.

    Example:
        >>> import torch
        >>> from kdx.batch import Batch
        >>> from kdx.capture import Captured
        >>> student, teacher = torch.tensor([[[0.9, 0.1]]]).log(), torch.tensor([[[0.2, 0.0, 0.8]]]).log()
        >>> batch = Batch(None, torch.tensor([[0]]), views={"alignment": {"teacher_labels": torch.tensor([[2]])}})
        >>> uld = ULD(shift=False)
        >>> round(uld(Captured({"logits": student}), Captured({"logits": teacher}), batch).value.item(), 4)
        0.2
    """

    def __init__(
        self,
        *,
        student_temperature: float = 1.0,
        teacher_temperature: float = 1.0,
        alignment: str = "alignment",
        shift: bool | None = None,
        student: str = LOGITS,
        teacher: str = LOGITS,
    ) -> None:
        super().__init__(alignment=alignment, shift=shift, student=student, teacher=teacher)
        self.student_temperature = check_number("student_temperature", student_temperature, above=0)
        self.teacher_temperature = check_number("teacher_temperature", teacher_temperature, above=0)

    @override
    def count(self, batch: Batch) -> Tensor:
        """The number of pairs of places."""
        tokens = self.tokens(None, None, batch)
        return torch.minimum((tokens.student != IGNORE).sum(1), (tokens.teacher != IGNORE).sum(1)).sum()

    @override
    def forward(self, student: Captured, teacher: Captured, batch: Batch | None) -> Mean:
        s, t = student[self.student_taps[0]], teacher[self.teacher_taps[0]]
        tokens = self.tokens(s.shape, t.shape, batch)
        ours, theirs, counted = _pairs(tokens.student != IGNORE, tokens.teacher != IGNORE)
        if not torch.compiler.is_compiling():
            ours, theirs, counted = ours[counted], theirs[counted], counted[counted]
        distances = sorted_distance(
            s.flatten(0, 1),
            t.flatten(0, 1),
            ours.flatten(),
            theirs.flatten(),
            student_temperature=self.student_temperature,
            teacher_temperature=self.teacher_temperature,
        )
        return Mean.of_sum(distances.masked_fill(~counted.flatten(), 0.0).sum(), counted.sum())

    @override
    def extra_repr(self) -> str:
        return f"student_temperature={self.student_temperature}, teacher_temperature={self.teacher_temperature}"


def _pairs(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The k-th learned place of either side, of every row: numbers of rows of ``[N S]`` and ``[N T]``, and if it is.

    Args:
        student: bool ``[N, S]``, the places that are learned.
        teacher: bool ``[N, T]``.
    """
    most = min(student.shape[1], teacher.shape[1])
    places = [(~side).sort(dim=1, stable=True).indices[:, :most] for side in (student, teacher)]
    fewer = torch.minimum(student.sum(1), teacher.sum(1))
    counted = torch.arange(most, device=student.device) < fewer.unsqueeze(1)
    row = torch.arange(len(student), device=student.device).unsqueeze(1)
    ours, theirs = (place + row * side.shape[1] for place, side in zip(places, (student, teacher), strict=True))
    return ours, theirs, counted
