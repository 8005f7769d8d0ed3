"""The base of components that compare layers pair by pair."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import Captured
from kdx.features.feature import Feature
from kdx.features.matching import Pairs, Strategy, pair_by_depth, pair_layers
from kdx.features.similarity import SIMILARITIES
from kdx.knowledge.base import Knowledge
from kdx.losses import LossTerm
from kdx.tap import TapNames, TapOptions

__all__ = ["PairedLayers"]


class PairedLayers(Knowledge):
    """Base of knowledge that compares student layers with teacher layers and sums over the pairs.

    A subclass gives :meth:`compare`; with ``builds`` it also makes one learnable part per pair in :meth:`build`.

    Args:
        student: taps of student layers, from shallow to deep; globs are allowed.
        teacher: taps of teacher layers.
        pairing: which student layer learns from which teacher layer, see :data:`kdx.features.Strategy`. The strategies
            by similarity use the batch of ``setup``; their pairs are saved with the component.
        seed: for ``pairing="random"``.
        **features: see :class:`kdx.tap.TapOptions`.
    """

    kind = "feature"
    builds: ClassVar[bool] = False

    def __init__(
        self,
        *,
        student: TapNames,
        teacher: TapNames,
        pairing: Strategy = "explicit",
        seed: int = 0,
        **features: Unpack[TapOptions],
    ) -> None:
        super().__init__(student=student, teacher=teacher, **features)
        if pairing == "attention":
            raise ValueError(
                "pairing 'attention' learns a weight for every pair of layers: that is the knowledge 'semckd'; this "
                "component takes the others"
            )
        if pairing not in SIMILARITIES:
            pair_by_depth(pairing, 1, 1)  # a misspelt strategy fails here
        self.student_layers = self.student_taps  # a subclass may tap more than it pairs
        self.teacher_layers = self.teacher_taps
        self.pairing: Strategy = pairing
        self.seed = seed
        self.pairs: Pairs | None = None

    @property
    @override
    def ready(self) -> bool:
        return self.pairs is not None or not (self.builds or self.pairing in SIMILARITIES)

    @override
    def setup(self, student: Captured, teacher: Captured) -> None:
        if self.pairs is not None:
            return
        s, t = self.layers(student, teacher)
        if self.pairing in SIMILARITIES:
            rows = [[feature.batch_first() for feature in side] for side in (s, t)]
            self.pairs = pair_layers(self.pairing, *rows, seed=self.seed)
        else:
            self.pairs = pair_by_depth(self.pairing, len(s), len(t), seed=self.seed)
        if self.pairing in SIMILARITIES:
            self.register_buffer("chosen", torch.tensor(self.pairs))
        self.build([(s[i], t[j]) for i, j in self.pairs])

    def build(self, pairs: list[tuple[Feature, Feature]]) -> None:
        """Makes the learnable parts, from one example of every pair: of the student, of the teacher."""

    @abstractmethod
    def compare(self, pair: int, student: Feature, teacher: Feature) -> Tensor:
        """The loss of one pair, a scalar.

        Args:
            pair: its number, from 0.
            student: the student's feature with its layout, in float32 (float64 stays), as autocast is off;
                :func:`kdx.features.match` makes tensors of one form of the two.
            teacher: the teacher's, likewise.
        """

    @override
    def forward(self, student: Captured, teacher: Captured, batch: Batch) -> LossTerm:
        s, t = self.layers(student, teacher)
        pairs = self.pairs_among(len(s), len(t))
        with self.in_full_precision(student):
            return torch.stack([self.compare(n, s[i].full(), t[j].full()) for n, (i, j) in enumerate(pairs)]).sum()

    def layers(self, student: Captured, teacher: Captured) -> tuple[list[Feature], list[Feature]]:
        """The features of the layers that are paired, of both sides."""
        return self.student_features(student, self.student_layers), self.teacher_features(teacher, self.teacher_layers)

    def pairs_among(self, students: int, teachers: int) -> Pairs:
        """The pairs, each of the numbers of a student's and a teacher's layer.

        Args:
            students: number of student layers.
            teachers: number of teacher layers.

        Raises:
            RuntimeError: the learnable parts are not there yet.
        """
        if not self.ready:
            raise RuntimeError(
                f"{type(self).__name__} has no pairs yet; call scheme.setup(batch) before the optimizer is built"
            )
        return self.pairs or pair_by_depth(self.pairing, students, teachers, seed=self.seed)

    def in_full_precision(self, student: Captured) -> torch.autocast:
        """The context without autocast in which layers are compared."""
        return torch.autocast(student[student.names(self.student_taps)[0]].device.type, enabled=False)

    @override
    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if (stored := state_dict.get(f"{prefix}chosen")) is None or self.pairs is None:
            return
        pairs = [(int(i), int(j)) for i, j in stored.tolist()]
        if self.builds and pairs != self.pairs:
            args[-1].append(
                f"{prefix}chosen: the checkpoint pairs layers {pairs}, this run pairs {self.pairs} and built its "
                "adapters for them; set up on the same batch (the same seed), or write the pairs down, explicit"
            )
        else:
            self.pairs = pairs
