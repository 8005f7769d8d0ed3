"""The base of all knowledge components."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Unpack

from torch import Tensor, nn

from kdx.batch import Batch
from kdx.capture import LOGITS, Captured
from kdx.features.feature import Feature, read_features
from kdx.losses import Count, LossTerm, Over
from kdx.responses import Responses
from kdx.tap import TapNames, TapOptions, Told, taps_of

__all__ = ["Knowledge"]


class Knowledge(nn.Module, ABC):
    """A loss between what a student and a teacher produced for the same batch; the base of all knowledge.

    A component declares the taps it reads, may own parameters and buffers (adapters, memory banks: they are trained,
    saved and moved with the scheme, and never exported with the student) and returns one scalar. It does not decide
    who is a teacher, and it need not detach the teacher: the scheme does.

    Attributes:
        kind: ``"response"``, ``"feature"`` or ``"relation"``.
        student_taps: taps read in the student, as :class:`kdx.Taps` takes them.
        teacher_taps: taps read in the teacher.
        told: what the options ``layout``, ``grid``, ``class_token`` and ``registers`` say of the features at its taps;
            a component that reads features hands them on, as ``**features: Unpack[kdx.TapOptions]``.
        responses: what the scheme's task says of the outputs; nothing, until a scheme binds it.
        needs_index: whether ``batch.index`` must be there.
        takes_held: whether it reads outputs by ``captured.response(tap)`` and takes :class:`kdx.LinearLogits` there;
            others are refused where logits are held so, before training.
        takes_weight: whether a call takes ``weight=``, the weight of its term in a step that trains, and gives the
            loss multiplied by it; for kernels that multiply at no cost.
        mean_over_samples: whether the losses of parts of a batch add up to that of the whole, as :attr:`over` counts
            them; None: of all kinds but relations. False also for a loss that a statistic of the batch enters. The
            conformance kit holds a component to it.
        over: what the loss is a mean over, so that micro-batches and ranks are put together by it; a component whose
            count follows from the outputs alone returns ``(value, count)`` instead of a scalar.
        counts_batch: whether :meth:`count` tells the count of the mean that it returns from a batch alone, so that
            :func:`kdx.fit` needs the graph of one micro-batch at a time.
    """

    kind: ClassVar[str] = "response"
    needs_index: ClassVar[bool] = False
    takes_held: ClassVar[bool] = False
    takes_weight: ClassVar[bool] = False
    counts_batch: ClassVar[bool] = False
    mean_over_samples: bool | None = None
    over: Over = Over.ROWS

    def __init__(
        self, *, student: TapNames = LOGITS, teacher: TapNames = LOGITS, **features: Unpack[TapOptions]
    ) -> None:
        super().__init__()
        self.told = Told.of(features, type(self))
        self.student_taps: tuple[str, ...] = taps_of(student)
        self.teacher_taps: tuple[str, ...] = taps_of(teacher)
        self.responses = Responses(form=None, void=None)

    def bind(self, responses: Responses) -> None:
        """Receives what the task of the scheme says of the outputs; an option of the component goes before it."""
        self.responses = responses
        for part in self.modules():
            if isinstance(part, Knowledge) and part is not self:
                part.bind(responses)

    def student_features(self, captured: Captured, taps: Iterable[str] | None = None) -> list[Feature]:
        """The student's features at its taps, or at those given, each with its layout as far as it is known."""
        who = f"{type(self).__name__}: the student's feature"
        return self._read(captured, self.student_taps if taps is None else taps, who)

    def teacher_features(self, captured: Captured, taps: Iterable[str] | None = None) -> list[Feature]:
        """The same of the teacher."""
        who = f"{type(self).__name__}: the teacher's feature"
        return self._read(captured, self.teacher_taps if taps is None else taps, who)

    def _read(self, captured: Captured, taps: Iterable[str], who: str) -> list[Feature]:
        said = self.responses.class_dim
        outputs = {} if said is None else {self.responses.tap: said}
        return read_features(captured, taps, told=self.told, who=who, outputs=outputs)

    @property
    def reads_logits(self) -> bool:
        """Whether it reads the models' own outputs; where nothing does, a language model need not compute them."""
        return any(tap.partition("[")[0] == LOGITS for tap in (*self.student_taps, *self.teacher_taps))

    @property
    def ready(self) -> bool:
        """Whether every learnable part exists; parts built from shapes appear in :meth:`setup`."""
        return True

    def dataset_size(self, samples: int) -> None:  # most components keep nothing per sample
        """Receives the number of samples, before :meth:`setup`: ``batch.index`` lies in ``0 .. samples - 1``."""

    def dataset_labels(self, labels: Tensor) -> None:  # most components know no classes
        """Receives the class of every sample ``[samples]``, ``-100`` where it is unknown, before :meth:`setup`."""

    def setup(self, student: Captured, teacher: Captured) -> None:  # most components have nothing to build
        """Builds the parts whose shape depends on the models, from one captured batch of each."""

    def epoch_start(self, epoch: int, epochs: int) -> None:  # most components are the same in every epoch
        """Learns that an epoch (from 0, of ``epochs``) begins, as :meth:`kdx.Scheme.epoch_start` says.

        What it sets belongs in a buffer: a run that resumes amid an epoch does not call it again.
        """

    def mean_over(self, student: Captured, batch: Batch) -> Over | Count:
        """Says what the loss of this batch, if it is a plain scalar, is a mean over: :attr:`over`, or a number."""
        return self.over

    @property
    def passes_padding(self) -> bool:
        """Whether it learns nothing at the padding of sequences, of which a store holds nothing; asked once bound."""
        return False

    def count(self, batch: Batch) -> Count:
        """The count of the mean of this batch, before any model has run, where :attr:`counts_batch` says so."""
        raise NotImplementedError(f"{type(self).__name__} has to define count(batch), since counts_batch is True")

    def accepts_estimate(self, temperature: float) -> bool:
        """Whether the loss stays unbiased on teacher logits whose softmax at ``temperature`` is an unbiased estimate.

        True only for losses that are linear in those probabilities, up to terms that do not depend on the student.
        """
        return False

    @abstractmethod
    def forward(self, student: Captured, teacher: Captured, batch: Batch) -> LossTerm:
        """The loss of one batch, a finite scalar with gradient to the student and to own parameters.

        It is a mean over what :meth:`mean_over` says, or returned with it as :class:`kdx.Mean` or ``(value, count)``.
        """
