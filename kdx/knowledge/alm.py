"""Likelihoods of the chunks of text that two tokenisations have in common (approximate likelihood matching)."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import LOGITS, Captured
from kdx.knowledge.other_tokenizer import OtherTokenizer
from kdx.knowledge.token_surprisals import token_surprisals
from kdx.linear_logits import LinearLogits
from kdx.losses import Mean
from kdx.ops import SparseTargets
from kdx.ranges import check_number

__all__ = ["ALM", "binary_divergence", "chunk_surprisals"]

SURE = 1e-4
"""Nats that are added to both surprisals: a chunk that is certain has no logarithm of the odds."""
MOST = 1e4
"""Nats above which a surprisal counts as these: of a chunk that is impossible there is no difference to take."""
EXPONENT = 80.0
"""The largest number whose exponential float32 holds with room to spare."""


def chunk_surprisals(surprisals: Tensor, chunks: Tensor, most: int) -> Tensor:
    """The sum over the tokens of each chunk.

    Args:
        surprisals: of the tokens, ``[N, L]``.
        chunks: int64 ``[N, L]``, the number of the chunk of each token, below ``most``; -1 for none.
        most: number of chunks, C.

    Returns:
        ``[N, C]``, 0 of a chunk without a token.

    Example:
        >>> import torch
        >>> chunk_surprisals(torch.tensor([[0.5, 1.0, 2.0, 9.0]]), torch.tensor([[0, 0, 1, -1]]), 3).tolist()
        [[1.5, 2.0, 0.0]]
    """
    found = surprisals.new_zeros(len(surprisals), most + 1)
    return found.scatter_add(1, torch.where(chunks < 0, most, chunks), surprisals)[:, :most]


def binary_divergence(student: Tensor, teacher: Tensor, temperature: float | None = 100.0) -> Tensor:
    """``tau KL(p^(1/tau) || q^(1/tau))`` of yes or no: whether a text comes, by teacher (p) and student (q).

    Likelihoods of long texts are all near 0, where yes or no says little; the root spreads them. Times tau, the loss
    and its gradient keep their size, and for tau without end they become ``a log(a / b) + b - a`` of the surprisals
    a of the teacher and b of the student.

    It is a sum of two terms that are never negative, so that it keeps its digits where both agree.

    Args:
        student: ``-log q``, any shape; a ten-thousandth of a nat is added to it and to the teacher's.
        teacher: ``-log p``, the same shape; it gets no gradient.
        temperature: tau, above 0; None: without end.

    Returns:
        Of the same shape, at least 0, with gradient to the student.

    Example:
        >>> import torch
        >>> p, q = torch.tensor([0.5]), torch.tensor([0.25])
        >>> round(binary_divergence(-q.log(), -p.log(), temperature=1.0).item(), 3)  # 0.5 log(0.5 0.5 / 0.25 0.75)
        0.144
    """
    most = MOST if temperature is None else min(MOST, EXPONENT * temperature)
    a, b = teacher.detach().clamp(max=most), student.clamp(max=MOST)
    a, b, more = a + SURE, b + SURE, b - a  # of nearby numbers the difference is exact before something is added
    if temperature is None:
        return a * _above_log(more / a, b / a)
    a, b, more = a / temperature, b / temperature, more / temperature
    yes, no = torch.exp(-a), -torch.expm1(-a)
    # how much likelier the student takes it that the text does not come, less 1
    above_log = _above_log(-yes * torch.expm1(-more) / no, -torch.expm1(-b) / no)
    return temperature * (no * above_log + yes * _above_exp(more))


def _above_log(x: Tensor, more: Tensor) -> Tensor:
    """``x - log(1 + x)`` without loss of digits near 0, where ``more`` is 1 + x."""
    near = _near_zero(x)
    y = torch.where(near, x, 0.0)
    series = y.square() * (1 / 2 - y * (1 / 3 - y * (1 / 4 - y * (1 / 5 - y * (1 / 6 - y / 7)))))
    z = torch.where(near, 2.0, more)
    return torch.where(near, series, z - 1 - torch.log(z))


def _above_exp(x: Tensor) -> Tensor:
    """``exp(-x) - 1 + x`` without loss of digits near 0."""
    near = _near_zero(x)
    y = torch.where(near, x, 0.0)
    series = y.square() * (1 / 2 - y * (1 / 6 - y * (1 / 24 - y * (1 / 120 - y / 720))))
    z = torch.where(near, 1.0, x)
    return torch.where(near, series, torch.expm1(-z) + z)


def _near_zero(x: Tensor) -> Tensor:
    """Where a series has more digits than the difference."""
    return x.abs() < (0.003 if x.dtype == torch.float64 else 0.1)


class ALM(OtherTokenizer):
    """The likelihood of each chunk of text, whatever tokens spell it: approximate likelihood matching.

    A chunk is the shortest piece of a text that ends at the end of a token in both tokenisations; its likelihood on
    either side is the product of the probabilities of its tokens, read from logits ``[N, S, V]`` and ``[N, T, V']``.

    Loss: ``tau KL(p^(1/tau) || q^(1/tau))`` of yes or no, whether the chunk comes, by the teacher's likelihood p and
    the student's q (:func:`binary_divergence`); the mean over the chunks. There is no ``T^2``: the factor tau keeps
    loss and gradient of one size. The paper minimises this over tau, 100, so that a weight of 0.01 here is theirs; it
    weighs every chunk alike, as here. Gradients reach the student, 0 where both agree.

    Only the tokens that are there are looked at, not the other classes: the teacher says how likely the text was, not
    what else could have come. So it needs no correspondence between vocabularies, works with bytes as tokens, and costs
    one pass over the logits, in chunks of rows, without a float copy of them, or over hidden states and a head where
    :class:`kdx.Head` says that the logits are not made. A chunk counts if all its tokens are
    learned and predicted on both sides: prompts, padding, special tokens of one side alone, the first token of a row
    and what lies behind the last common end teach nothing.

    Chunks are the shortest there are. The paper's remedies against the bias of comparing a token that ends a word with
    one that goes on (tables of biased pairs, the probability of a following space) are not part of this.

    Args:
        temperature: tau, above 0; None: without end.
        alignment: the view of the batch that holds ``teacher_labels``, ``student_chunks`` and ``teacher_chunks``, see
            :class:`kdx.datasets.TwoVocabularies`.
        shift: whether the output at place t predicts the token at t + 1; None: what a task of tokens says, else yes.
        student: tap of the student's logits, ``[N, S, V]``.
        teacher: tap of the teacher's logits, ``[N, T, V']``.

    Raises:
        ValueError: a temperature that is not above 0; in a call, a batch that does not say how the tokens of both sides
            lie beside each other.

    Paper: Minixhofer, Vulić, Ponti, Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching, 2025,
    https://arxiv.org/abs/2503.20083.

    Example:
        >>> import torch
        >>> from kdx.batch import Batch
        >>> from kdx.capture import Captured
        >>> from kdx.datasets import Tokens, TwoVocabularies
        >>> vocabularies = TwoVocabularies([b"a", b"b", b"ab"], [b"a", b"b"])
        >>> batch = vocabularies.batch([(Tokens([0, 2]), Tokens([0, 0, 1]))])  # "a" and "ab" as one token or as two
        >>> student, teacher = Captured({"logits": torch.zeros(1, 2, 3)}), Captured({"logits": torch.zeros(1, 3, 2)})
        >>> round(ALM()(student, teacher, batch).value.item(), 3)  # surprisals log 3 and log 4
        0.035
    """

    takes_held = True

    def __init__(
        self,
        temperature: float | None = 100.0,
        *,
        alignment: str = "alignment",
        shift: bool | None = None,
        student: str = LOGITS,
        teacher: str = LOGITS,
    ) -> None:
        super().__init__(alignment=alignment, shift=shift, student=student, teacher=teacher)
        self.temperature = None if temperature is None else check_number("temperature", temperature, above=0)

    @override
    def count(self, batch: Batch) -> Tensor:
        """The number of chunks that teach."""
        tokens = self.tokens(None, None, batch, chunks=True)
        assert tokens.student_chunks is not None
        assert tokens.teacher_chunks is not None
        return _both(tokens.student_chunks, tokens.teacher_chunks).sum()

    @override
    def forward(self, student: Captured, teacher: Captured, batch: Batch | None) -> Mean:
        s, t = _outputs(student, self.student_taps[0]), _outputs(teacher, self.teacher_taps[0])
        tokens = self.tokens(s.shape, t.shape, batch, chunks=True)
        ours, theirs = tokens.student_chunks, tokens.teacher_chunks
        assert ours is not None
        assert theirs is not None
        most = min(ours.shape[1], theirs.shape[1])
        surprisal, given = (
            chunk_surprisals(token_surprisals(logits, labels), chunks, most)
            for logits, labels, chunks in ((s, tokens.student, ours), (t.detach(), tokens.teacher, theirs))
        )
        counted = _both(ours, theirs)
        each = binary_divergence(surprisal, given.to(surprisal.dtype), self.temperature)
        return Mean.of_sum(each.masked_fill(~counted, 0.0).sum(), counted.sum())

    @override
    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


def _outputs(captured: Captured, tap: str) -> Tensor | LinearLogits:
    """Logits as they are held; of a few classes, among which a token may be missing, those made of them."""
    found = captured.response(tap)
    return captured[tap] if isinstance(found, SparseTargets) else found


def _both(student: Tensor, teacher: Tensor) -> Tensor:
    """Which chunks have a token on either side, bool ``[N, C]``, of chunks ``[N, S]`` and ``[N, T]``."""
    most = min(student.shape[1], teacher.shape[1])
    ours, theirs = (chunk_surprisals(torch.ones_like(each), each, most) > 0 for each in (student, teacher))
    return ours & theirs
