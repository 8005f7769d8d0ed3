"""The base of the schemes in which layers of one network teach each other."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import nn
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import Captured, Output
from kdx.features.feature import Feature, read_features
from kdx.knowledge.base import Knowledge
from kdx.modes import evaluating
from kdx.schemes.base import KnowledgeTerms, Task, components_in, own_copies, setup_components
from kdx.schemes.one_student import OneStudent
from kdx.schemes.parts.depths import find_stages
from kdx.tap import TapName, TapOptions, Told, taps_of

__all__ = ["SelfLayers"]


class SelfLayers(OneStudent):
    """Base of schemes in which stages of the student teach shallower ones; every lesson has its own components.

    Knowledge reads what a subclass calls its :attr:`names`, not taps of the model: the layers are those of ``stages``.

    Args:
        student: the model to train.
        task: see :class:`kdx.Scheme`.
        knowledge: see :class:`kdx.Scheme`; each lesson gets a copy, so adapters and stores are not shared.
        names: what a component can read, on both sides.
        stages: taps from shallow to deep, at least two; None finds them (:func:`kdx.schemes.parts.depths.find_stages`).
        student_output: see :class:`kdx.Taps`.
        **features: of the stages, see :class:`kdx.tap.TapOptions`.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        task: Task,
        knowledge: KnowledgeTerms,
        names: tuple[str, ...],
        stages: Sequence[TapName] | None,
        student_output: Output,
        **features: Unpack[TapOptions],
    ) -> None:
        super().__init__(student, task=task, knowledge=knowledge, student_output=student_output)
        self.told = Told.of(features, type(self))
        for name, component in self.components.items():
            for tap in (*component.student_taps, *component.teacher_taps):
                if tap not in names:
                    raise ValueError(
                        f"knowledge {name!r} taps {tap!r}; between stages of one network a component reads one of "
                        f"{list(names)}, on both sides"
                    )
        if stages is not None and len(stages) < 2:
            raise ValueError(f"stages must name at least two modules, from shallow to deep; got {list(stages)}")
        self.stages: tuple[TapName, ...] = () if stages is None else taps_of(stages)
        self.taps.add(self.stages)
        self._set_up = False

    @property
    @override
    def ready(self) -> bool:
        return self._set_up

    @override
    def setup(self, batch: Batch | Any) -> None:
        if self._set_up:
            return
        batch = Batch.of(batch)
        if not self.stages:
            self.stages = find_stages(self.student, batch.inputs)
            self.taps.add(self.stages)
        with evaluating(self.student), torch.no_grad():
            captured = self.taps(batch.inputs)
            self.build(captured)
        lessons = range(len(self.stages) - 1)
        self.knowledge = nn.ModuleDict({f"lesson{k}": own_copies(self.components) for k in lessons})
        with evaluating(self), torch.no_grad():
            for k, (student, teacher) in zip(lessons, self.lessons(captured), strict=True):
                components = self.lesson_components(k)
                setup_components(components, lambda s=student: s, lambda t=teacher: t)  # type: ignore[misc]
        self.knowledge.train(self.training)
        self._set_up = True

    def build(self, captured: Captured) -> None:
        """Makes the learnable parts, from one captured pass."""

    @abstractmethod
    def lessons(self, captured: Captured) -> list[tuple[Captured, Captured]]:
        """Who learns and who teaches, for each stage but the last; the teacher is detached."""

    def lesson_components(self, lesson: int) -> dict[str, Knowledge]:
        """The components of one lesson by name."""
        return components_in(self.knowledge[f"lesson{lesson}"])

    def stage_features(self, captured: Captured) -> list[Feature]:
        """The feature of each stage, with its layout."""
        return read_features(captured, self.stages, told=self.told, who=f"{type(self).__name__}: the stage")

    def captured(self, batch: Batch) -> Captured:
        """One pass of the student."""
        if not self._set_up:
            raise RuntimeError(
                f"{type(self).__name__} looks for stages and builds parts from their shapes: call scheme.setup(batch) "
                "once, before the optimizer is built (kdx.fit does)"
            )
        return self.taps(batch.inputs)
