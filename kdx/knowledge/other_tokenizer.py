"""The base of components that learn from a teacher with another tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from kdx.batch import IGNORE, Batch
from kdx.capture import LOGITS
from kdx.knowledge.base import Knowledge
from kdx.responses import Responses

__all__ = ["BothTokenisations", "OtherTokenizer"]


class BothTokenisations(NamedTuple):
    """The tokens of a batch on both sides, each at the place of the output that predicts it.

    Args:
        student: the student's token ids, int64 ``[N, S]``, ``-100`` where nothing is learned.
        teacher: the teacher's, ``[N, T]``.
        student_chunks: the chunk of each of the student's tokens, ``[N, S]``, -1 for none and for those of a chunk
            that is not learned and predicted whole; None where not asked for.
        teacher_chunks: of the teacher's, ``[N, T]``.
    """

    student: Tensor
    teacher: Tensor
    student_chunks: Tensor | None = None
    teacher_chunks: Tensor | None = None


class OtherTokenizer(Knowledge):
    """Base of knowledge between language models whose tokenizers differ, so that neither places nor classes agree.

    The teacher sees its own tokenisation of the same texts, a view of the batch, and another view says which of its
    tokens are learned and how they lie beside the student's. :class:`kdx.datasets.TwoVocabularies` makes such batches.

    Args:
        alignment: the name of the view that says so, a mapping with ``teacher_labels`` ``[N, T]`` and, for chunks,
            ``student_chunks`` ``[N, S]`` and ``teacher_chunks`` ``[N, T]``.
        shift: whether the output at place t predicts the token at t + 1; None: what a task of tokens says, else yes.
        student: tap of the student's logits, ``[N, S, V]``.
        teacher: tap of the teacher's logits, ``[N, T, V']``.
    """

    kind = "response"
    counts_batch = True

    def __init__(
        self,
        *,
        alignment: str = "alignment",
        shift: bool | None = None,
        student: str = LOGITS,
        teacher: str = LOGITS,
    ) -> None:
        super().__init__(student=student, teacher=teacher)
        self.alignment = alignment
        self.shift = shift

    @override
    def bind(self, responses: Responses) -> None:
        super().bind(responses)
        self._said = responses.shift if responses.class_dim == 2 and responses.void else None

    _said: bool | None = None

    def tokens(
        self,
        student: tuple[int, ...] | None,
        teacher: tuple[int, ...] | None,
        batch: Batch | None,
        *,
        chunks: bool = False,
    ) -> BothTokenisations:
        """The tokens of both sides beside outputs of these shapes.

        Args:
            student: the shape of the student's logits; None: no outputs are there yet.
            teacher: of the teacher's.
            batch: with targets and the view :attr:`alignment`.
            chunks: whether the chunks are wanted too.

        Raises:
            ValueError: the batch has no targets, no such view, or an item is missing in it; shapes do not fit the
                outputs; a label lies beyond a vocabulary.
        """
        who = type(self).__name__
        if batch is None or not isinstance(batch.targets, Tensor) or batch.targets.is_floating_point():
            raise ValueError(
                f"{who}: expected the student's token ids as batch.targets, int64 [N, S] with -100 where nothing is "
                f"learned, got {'no targets' if batch is None or batch.targets is None else 'other targets'}; {WAY}"
            )
        view = batch.views.get(self.alignment)
        wanted = ["teacher_labels", *(["student_chunks", "teacher_chunks"] if chunks else [])]
        if not isinstance(view, Mapping) or (missing := [name for name in wanted if name not in view]):
            got = "no such view" if not isinstance(view, Mapping) else f"one without {missing[0]!r}"
            raise ValueError(
                f"{who}: expected the view {self.alignment!r} of the batch with {', '.join(map(repr, wanted))}, which "
                f"say how the teacher's tokens lie beside the student's, got {got}; {WAY}"
            )
        labels: dict[str, Any] = {"targets": batch.targets, **{name: view[name] for name in wanted}}
        for name, values in labels.items():
            side = "student" if name in ("targets", "student_chunks") else "teacher"
            shape = student if side == "student" else teacher
            if shape is not None and (len(shape) != 3 or tuple(values.shape) != tuple(shape[:2])):
                raise ValueError(
                    f"{who}: expected {name} of the shape of the {side}'s places, {list(shape[:2])} of its logits "
                    f"{list(shape)}, got {list(values.shape)}; does the {side} see the tokens that they are of "
                    '(kdx.teachers.Frozen(teacher, view="teacher"))?'
                )
        for name, shape, side in (("targets", student, "student"), ("teacher_labels", teacher, "teacher")):
            if shape is not None:
                _check_labels(f"{who}: {name}", labels[name], shape[2], side)
        shifted = (self._said if self.shift is None else self.shift) is not False
        if chunks:
            most = min(labels["targets"].shape[1], labels["teacher_labels"].shape[1])
            for side, name in (("student", "targets"), ("teacher", "teacher_labels")):
                labels[f"{side}_chunks"] = _whole(labels[f"{side}_chunks"], labels[name], most, shifted)
        if shifted and not chunks:  # the first token of a row is predicted by nothing: nor has its partner one
            told = [labels[name] != IGNORE for name in ("targets", "teacher_labels")]
            for name, mine, other in (("targets", *told), ("teacher_labels", *told[::-1])):
                lone = (other[:, :1] & ~mine[:, :1]) & (mine.cumsum(1) == 1)
                labels[name] = labels[name].masked_fill(lone & mine, IGNORE)
        if shifted:
            labels = {name: _moved(each, -1 if "chunks" in name else IGNORE) for name, each in labels.items()}
        return BothTokenisations(*labels.values())


WAY = (
    "kdx.datasets.TwoVocabularies(...).batch(...) makes such batches, the data set two-tokenizers and the collator "
    "TwoTokenizers of kdx-text do so from texts"
)


def _moved(values: Tensor, empty: int) -> Tensor:
    """Values ``[N, L]``, each at the place before its own."""
    return torch.cat([values[:, 1:], torch.full_like(values[:, :1], empty)], 1)


def _whole(chunks: Tensor, labels: Tensor, most: int, shifted: bool) -> Tensor:
    """The chunks ``[N, L]`` whose tokens are all learned and predicted, -1 elsewhere."""
    beyond = (chunks < 0) | (chunks >= most)
    number = torch.where(beyond, most, chunks)
    lost = labels == IGNORE
    if shifted:
        lost = lost | (torch.arange(labels.shape[1], device=labels.device) == 0)
    broken = torch.zeros(len(labels), most + 1, dtype=torch.int64, device=labels.device)
    broken = broken.scatter_add(1, number, lost.long()) > 0
    return torch.where(beyond | broken.gather(1, number), -1, chunks)


def _check_labels(what: str, labels: Tensor, classes: int, side: str) -> None:
    if torch.compiler.is_compiling() or labels.device.type != "cpu":  # elsewhere it would wait for the device
        return
    if len(wrong := labels[((labels < 0) & (labels != IGNORE)) | (labels >= classes)]):
        raise ValueError(
            f"{what}: expected token ids 0 .. {classes - 1} of the {side}'s outputs, or {IGNORE}, got {int(wrong[0])}; "
            "are they of another tokenizer?"
        )
