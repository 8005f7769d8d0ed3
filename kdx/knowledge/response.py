"""The base of components that compare outputs class by class, and what in them counts."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from kdx.batch import IGNORE, Batch
from kdx.capture import LOGITS, Captured
from kdx.features.operands import check_same_outputs
from kdx.knowledge.base import Knowledge
from kdx.knowledge.tokens import real_tokens
from kdx.losses import Count, Over
from kdx.ops import SparseTargets
from kdx.ranges import check_whole
from kdx.responses import Form, Responses, class_rows

__all__ = ["Outputs", "Response", "class_axis", "void_mask"]

INSTEAD = {
    Form.BERNOULLI: "'sigmoid-targets' compares them label by label",
    Form.VALUES: "'logits' compares them by their squared error, 'gaussian-kl' with their variances",
    Form.EMBEDDING: "a relation such as 'rkd' compares them",
}


@dataclass(frozen=True, slots=True)
class Outputs:
    """Outputs of student and teacher for one batch, and which elements of them count.

    Args:
        student: of any float dtype, with at least two dimensions; of a component that ``takes_held`` perhaps
            :class:`kdx.LinearLogits`.
        teacher: of the same shape; of such a component perhaps :class:`kdx.LinearLogits` or
            :class:`kdx.ops.SparseTargets`.
        dim: their class axis, from 0.
        mask: bool, of their shape without the class axis; True where the teacher teaches; None: everywhere.
        targets: those of the batch.
        vocabulary: how many classes count of a side that is no tensor; None: all. Tensors have those alone.
    """

    student: Any
    teacher: Any
    dim: int
    mask: Tensor | None
    targets: Any = None
    vocabulary: int | None = None

    def rows(self) -> tuple[Tensor, Tensor]:
        """The elements of both that count, as rows ``[R, C]``."""
        student, teacher = class_rows(self.student, self.dim), class_rows(self.teacher, self.dim)
        if self.mask is None:
            return student, teacher
        counted = self.mask.flatten()
        return student[counted], teacher[counted]


class Response(Knowledge):
    """Base of knowledge that compares the outputs of student and teacher, classes with classes.

    Outputs are logits ``[N, C]``, ``[N, L, C]`` or ``[N, C, d1, d2, ...]`` (the class axis is 1 from four dimensions
    on, as in :func:`torch.nn.functional.cross_entropy`); the task of the scheme, or ``class_dim``, says so where they
    lie otherwise. The loss is a mean over their elements: samples, tokens or pixels. Where the task's target is
    ``-100``, the teacher teaches if that means "no label", as in classification, and does not if it means "nothing
    there", as in segmentation and token classification; ``void`` goes before what the task says. The same holds for an
    element whose soft labels, targets of the outputs' shape, are all NaN. Where the task predicts what comes next
    (causal-lm) the target of an output is that of the next place.

    A subclass writes :meth:`compare`.

    Args:
        class_dim: axis of the classes; None: what the task says, else the rule above.
        void: whether elements with target ``-100`` teach nothing; None: what the task says.
        vocabulary: n, to compare the first n classes of both sides alone, as of a vocabulary that two models pad to
            different sizes: what lies behind is left out of every softmax. None: both have the same classes.
        student: tap of the student's outputs.
        teacher: tap of the teacher's outputs, the same shape.
    """

    kind = "response"
    form: ClassVar[Form | None] = Form.CLASSES
    """The form that outputs must have, since the loss takes a softmax (or sigmoids) of them; None: any."""

    def __init__(
        self,
        *,
        class_dim: int | None = None,
        void: bool | None = None,
        vocabulary: int | None = None,
        student: str = LOGITS,
        teacher: str = LOGITS,
    ) -> None:
        super().__init__(student=student, teacher=teacher)
        self.class_dim = class_dim
        self.void = void
        self.vocabulary = None if vocabulary is None else check_whole("vocabulary", vocabulary, least=2)

    @override
    def bind(self, responses: Responses) -> None:
        """Receives what the task of the scheme says of the outputs.

        Raises:
            ValueError: the loss does not suit outputs of that form, or the task passes over another target than -100.
        """
        super().bind(responses)
        if self.student_taps != (responses.tap,):
            return
        if responses.ignored != IGNORE and self.void is not False:
            raise ValueError(
                f"{type(self).__name__}: the task loss has ignore_index={responses.ignored}, and a target that "
                f"knowledge passes over is {IGNORE}: give {IGNORE} in its place "
                f"(targets[targets == {responses.ignored}] = {IGNORE}) and "
                "leave ignore_index out, or write void=False if the teacher teaches there"
            )
        wanted, said = self.form, responses.form
        if wanted is None or said is None or wanted is said:
            return
        raise ValueError(
            f"{type(self).__name__} compares outputs of the form {wanted.value!r}, and those of the task are of the "
            f"form {said.value!r}: {INSTEAD.get(said, 'take soft-targets')}"
        )

    @abstractmethod
    def compare(self, outputs: Outputs) -> Tensor:
        """The loss, a mean over the elements that count; 0 with zero gradient where none does."""

    @override
    def forward(self, student: Captured, teacher: Captured, batch: Batch) -> Tensor:
        return self.compare(self.outputs(student, teacher, batch))

    @override
    def mean_over(self, student: Captured, batch: Batch) -> Over | Count:
        outputs = self._answer(student, self.student_taps[0])
        if self.over is not Over.ROWS or self.mean_over_samples is False:
            return self.over
        dim = self.axis(outputs.shape)
        if (mask := self._mask(outputs, dim, batch)) is not None:
            if self._by_inputs:
                return mask.sum()
            return Over.LABELLED if _class_numbers(batch.targets) else mask.sum()
        if outputs.dim() == 2:
            return Over.ROWS
        return Over.ELEMENTS if _class_numbers(batch.targets) else outputs.numel() // max(1, outputs.shape[dim])

    @property
    @override
    def passes_padding(self) -> bool:
        if self.student_taps != (self.responses.tap,) and not self.responses.shift:
            return False
        return self._by_inputs or bool(self.responses.void if self.void is None else self.void)

    def axis(self, shape: torch.Size) -> int:
        """The class axis of outputs of this shape."""
        return Responses(class_dim=self._said_axis).axis(shape)

    @property
    def _said_axis(self) -> int | None:
        return self.responses.class_dim if self.class_dim is None else self.class_dim

    def narrowed(self, outputs: Any, side: str) -> Any:
        """Outputs of one side with the first ``vocabulary`` classes alone, a view; as they are where all are compared.

        What is no tensor stays as it is.

        Raises:
            ValueError: they have fewer.
        """
        if self.vocabulary is None or isinstance(outputs, SparseTargets):
            return outputs
        dim = self.axis(outputs.shape)
        if outputs.shape[dim] < self.vocabulary:
            raise ValueError(
                f"vocabulary: the first {self.vocabulary} classes are to be compared, and the {side} has "
                f"{outputs.shape[dim]} on axis {dim} of its outputs {list(outputs.shape)}; give the number of classes "
                "that both have, as that of the tokens of the tokenizer"
            )
        return outputs.narrow(dim, 0, self.vocabulary) if isinstance(outputs, Tensor) else outputs

    def outputs(self, student: Captured, teacher: Captured, batch: Batch | None) -> Outputs:
        """The outputs of both sides with their class axis and what counts.

        Raises:
            ValueError: shapes that differ, a softmax over a single class, or targets that do not fit the elements.
        """
        s, t = self._answer(student, self.student_taps[0]), self._answer(teacher, self.teacher_taps[0])
        if isinstance(t, SparseTargets) and self.axis(s.shape) != s.dim() - 1:  # their classes are on the last axis
            t = teacher[self.teacher_taps[0]]
        s, t = self.narrowed(s, "student"), self.narrowed(t, "teacher")
        if isinstance(s, Tensor) and isinstance(t, Tensor):
            check_same_outputs(s, t, self._said_axis, vocabulary=self.form is not Form.BERNOULLI)
            dim = class_axis(s, t, self._said_axis, softmax=self.form is Form.CLASSES)
        else:
            dim = self._axis_of_held(s, t)
        targets = None if batch is None else self.responses.aligned(batch.targets)
        return Outputs(s, t, dim, self._mask(s, dim, batch), targets, self.vocabulary)

    def _answer(self, captured: Captured, tap: str) -> Any:
        return captured.response(tap) if self.takes_held else captured[tap]

    def _axis_of_held(self, student: Any, teacher: Any) -> int:
        """The class axis, the last, of answers of which one at least is no tensor.

        Raises:
            ValueError: they are not of the same rows and classes, or their classes are on another axis.
        """
        dim = self.axis(student.shape)
        if dim != student.dim() - 1:
            raise ValueError(
                f"outputs held as hidden states and a head have their classes on the last axis, got class_dim={dim} of "
                f"{list(student.shape)}; leave kdx.Head out of output="
            )
        sparse = isinstance(teacher, SparseTargets)
        theirs = (*teacher.ids.shape[:-1], student.shape[-1]) if sparse else tuple(teacher.shape)
        if self.vocabulary is not None:
            theirs = (*theirs[:-1], student.shape[-1])
        if tuple(student.shape) != theirs:
            # of tensors without memory, for the sentence alone
            ours_like, theirs_like = (torch.empty(shape, device="meta") for shape in (tuple(student.shape), theirs))
            check_same_outputs(ours_like, theirs_like, self._said_axis, vocabulary=True)
        return dim

    @property
    def _by_inputs(self) -> bool:
        """Whether an item of the inputs says where the teacher teaches."""
        return self.responses.taught is not None and self.void is None

    def _mask(self, outputs: Any, dim: int, batch: Batch | None) -> Tensor | None:
        """True where the teacher teaches, None for everywhere."""
        if self.student_taps != (self.responses.tap,) and not self.responses.shift:
            return None
        if self._by_inputs and batch is not None:
            size = (outputs.shape[0], outputs.shape[1])
            real = real_tokens(batch.inputs, size, mask=self.responses.taught, who=type(self).__name__)
            return None if real is None else self.responses.aligned(real.long().where(real, IGNORE)) != IGNORE
        targets = None if batch is None else self.responses.aligned(batch.targets)
        void = self.responses.void if self.void is None else self.void
        return void_mask(outputs, dim, targets, void=void, who=type(self).__name__)


def void_mask(outputs: Any, dim: int, targets: Any, *, void: bool | None, who: str) -> Tensor | None:
    """True where there is something to be taught, of the outputs' shape without the classes; None for everywhere.

    Args:
        outputs: those of a task, ``[N, C]``, ``[N, L, C]`` or ``[N, C, d1, d2, ...]``.
        dim: their class axis, from 0.
        targets: those of the batch.
        void: whether elements with target -100 teach nothing; None: nobody says.
        who: how messages name the component.

    Raises:
        ValueError: targets of another resolution than the outputs, or -100 among them, and nobody says what it means.
    """
    if not isinstance(targets, Tensor) or targets.dtype == torch.bool:
        return None
    elements = outputs.shape[:dim] + outputs.shape[dim + 1 :]
    if targets.shape == outputs.shape:  # soft labels, or labels of their own
        return _known(targets).any(dim) if void else None
    if targets.shape != elements:
        if void or (outputs.dim() > 2 and targets.dim() > 1 and _class_numbers(targets)):
            raise ValueError(_misfit(outputs, dim, targets))
        return None
    if void is None and outputs.dim() > 2 and not torch.compiler.is_compiling() and bool((targets == IGNORE).any()):
        raise ValueError(
            f"{who}: targets of shape {list(targets.shape)} hold {IGNORE}, and the task does not "
            "say whether the teacher teaches there: write void=True (nothing is there: a border, padding) or "
            "void=False (there is no label), or take a task that says it, such as segmentation"
        )
    return _known(targets) if void else None


def class_axis(student: Tensor, teacher: Tensor, class_dim: int | None = None, *, softmax: bool = True) -> int:
    """The class axis of two outputs, from 0.

    Args:
        student: ``[N, C]``, ``[N, L, C]`` or ``[N, C, d1, d2, ...]``.
        teacher: of the same shape.
        class_dim: the axis, where it is another one.
        softmax: whether a softmax is to be taken of them, which needs two classes.

    Raises:
        ValueError: shapes that differ, fewer than two dimensions or classes.
    """
    check_same_outputs(student, teacher, class_dim)
    dim = Responses(class_dim=class_dim).axis(student.shape)
    if softmax and student.shape[dim] < 2:
        raise ValueError(
            f"expected logits of two classes or more on axis {dim}, got shape {list(student.shape)}: the softmax over "
            "one class is always 1 and teaches nothing. One logit for yes or no is the task 'binary' with the "
            "knowledge 'sigmoid-targets'; or write class_dim= if the classes are on another axis"
        )
    return dim


def _known(targets: Tensor) -> Tensor:
    return (targets != IGNORE) & ~targets.isnan()


def _class_numbers(targets: Any) -> bool:
    return isinstance(targets, Tensor) and not targets.is_floating_point() and targets.dtype != torch.bool


def _misfit(outputs: Tensor, dim: int, targets: Tensor) -> str:
    elements = [*outputs.shape[:dim], *outputs.shape[dim + 1 :]]
    fits = [
        axis
        for axis in range(1, outputs.dim())
        if list(targets.shape) == [*outputs.shape[:axis], *outputs.shape[axis + 1 :]]
    ]
    if fits:
        way = f"they fit classes on axis {fits[0]}: write class_dim={fits[0]}, or take a task that says it"
    else:
        way = "give targets at the resolution of the outputs, or bring the outputs to that of the targets in the model"
    return (
        f"outputs of shape {list(outputs.shape)} with their classes on axis {dim} have elements {elements}, and the "
        f"targets have shape {list(targets.shape)}; {way}"
    )
