"""Chains of assistants between a large teacher and a small student: TAKD and DGKD."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from typing_extensions import override

from kdx.assistants.base import Assistant
from kdx.assistants.placement import ByAccuracy, Ladder
from kdx.errors import PlanError
from kdx.ref import Ref, RefLike
from kdx.stage import Stage, Structure

__all__ = ["DGKD", "TAKD"]


class TAKD(Assistant):
    """Teacher assistants: the teacher teaches an assistant, that one the next smaller one, the last one the student.

    Every stage runs under the recipe's scheme with the recipe's knowledge and training, and is taught by the one right
    before it alone. (Averaging the assistants is another method.) The assistants are given, by ``models`` or ``sizes``,
    or proposed: the paper finds the best one near the mean of the accuracies of teacher and student, well below the
    mean of their sizes. For that, short runs (stages ``probe-...``, labels alone, the student's rows) of the teacher,
    the student and a few candidates in between estimate accuracies under one condition, and assistant ``k`` of ``n``
    becomes the candidate nearest to ``k / (n + 1)`` of the way from the teacher's to the student's accuracy.

    On data as small as those that come with kdx the effect of a chain is below the noise over seeds.

    Args:
        models: the assistants, largest first, each as ``Ref(name, option=value)`` or as in a recipe.
        sizes: instead of ``models``: values of the option ``vary``, largest first.
        count: instead of both: how many assistants to propose.
        vary: the integer option that sizes a model.
        like: whose other options the assistants have, ``"teacher"`` or ``"student"``.
        candidates: how many values of ``vary`` between the student's and the teacher's are probed, spread evenly by
            ratio, or the candidates themselves as in ``models``.
        probe_epochs: length of a probe.

    Raises:
        PlanError: more than one of ``models``, ``sizes`` and ``count`` is given, or none; no sizes fit between.

    Paper: Mirzadeh et al., Improved Knowledge Distillation via Teacher Assistant, AAAI 2020,
    https://arxiv.org/abs/1902.03393; code: https://github.com/imirzadeh/Teacher-Assistant-Knowledge-Distillation. Its
    KL is a mean over classes too, ``1 / C`` of the soft targets here: its weight ``w`` of the knowledge is ``w / C`` in
    a recipe.

    Example:
        >>> teacher, student = Ref("convnet", width=24), Ref("convnet", width=4)
        >>> for stage in TAKD(sizes=[16, 8]).plan(teacher, student):
        ...     print(stage.name, stage.teachers)
        assistant-1 ('teacher',)
        assistant-2 ('assistant-1',)
        distilled ('assistant-2',)
    """

    def __init__(
        self,
        *,
        models: Sequence[RefLike] | None = None,
        sizes: Sequence[int] | None = None,
        count: int | None = None,
        vary: str = "width",
        like: Literal["teacher", "student"] = "teacher",
        candidates: int | Sequence[RefLike] = 3,
        probe_epochs: int = 1,
    ) -> None:
        given = {"models": models, "sizes": sizes, "count": count}
        named = [name for name, value in given.items() if value is not None]
        if len(named) != 1:
            raise PlanError(
                f"give the assistants by models or by sizes, or let count of them be proposed; got "
                f"{' and '.join(named) or 'none of these'}"
            )
        if like not in ("teacher", "student"):
            raise PlanError(f"like must be 'teacher' or 'student', got {like!r}")
        self.models = None if models is None else [Ref.of(model, "models") for model in models]
        self.sizes = None if sizes is None else list(sizes)
        self.count = len(models or sizes or ()) if count is None else count
        if self.count < 1:
            raise PlanError(f"a chain needs at least one assistant, got {self.count}")
        self.links = self.count + 1
        self.vary = vary
        self.like = like
        self.candidates = candidates
        self.probe_epochs = probe_epochs

    @override
    def plan(self, teacher: Ref, student: Ref) -> list[Stage]:
        models, stages = self._assistants(teacher, student)
        names = ["teacher"]
        for place, model in enumerate(models, start=1):
            name = f"assistant-{place}"
            stages.append(self._taught(Stage(name, "assistant", model, self._teachers_of(names))))
            names.append(name)
        return [*stages, self._taught(Stage("distilled", "distilled", student, self._teachers_of(names)))]

    def _teachers_of(self, larger: Sequence[str]) -> tuple[str, ...]:
        """The teachers of the next stage, taken from all larger models."""
        return (larger[-1],)

    def _taught(self, stage: Stage) -> Stage:
        """The stage with what this kind of chain overrides."""
        return stage

    def _assistants(self, teacher: Ref, student: Ref) -> tuple[Sequence[Ref | Structure], list[Stage]]:
        """The assistants' models, largest first, and the stages that have to run to know them."""
        if self.models is not None:
            return self.models, []
        base = teacher if self.like == "teacher" else student
        ladder = Ladder(base, self.vary)
        if self.sizes is not None:
            return [ladder.at(size) for size in self.sizes], []
        if isinstance(self.candidates, int):
            found = ladder.between(student, teacher, self.candidates)
        else:
            found = [Ref.of(candidate, "candidates") for candidate in self.candidates]
        if len(found) < self.count:
            raise PlanError(
                f"{self.count} assistants are to be chosen from {len(found)} candidates between teacher and student; "
                "ask for more candidates or fewer assistants"
            )
        ends = {"probe-teacher": teacher, "probe-student": student}
        probes = {f"probe-{place}": candidate for place, candidate in enumerate(found, start=1)}
        stages = [
            Stage(name, "probe", model, train={"epochs": self.probe_epochs}) for name, model in (ends | probes).items()
        ]
        return [
            ByAccuracy(probes, "probe-teacher", "probe-student", self.count, place=k) for k in range(1, self.count + 1)
        ], stages


class DGKD(TAKD):
    """Densely guided: every assistant, and at last the student, is taught by the teacher and all larger assistants.

    As :class:`TAKD`, but under the scheme ``dense-guidance`` (:class:`kdx.schemes.DenseGuidance`), which
    leaves ``drop`` random teachers out of every optimizer step. The knowledge is the recipe's; the paper takes soft
    targets at a temperature of 5.

    On data as small as those that come with kdx the effect of dense guidance is below the noise over seeds.

    Args:
        models: see :class:`TAKD`.
        sizes: see :class:`TAKD`.
        count: see :class:`TAKD`.
        vary: see :class:`TAKD`.
        like: see :class:`TAKD`.
        candidates: see :class:`TAKD`.
        probe_epochs: see :class:`TAKD`.
        drop: teachers left out of a step where there are more than that; 0 keeps all.
        reduction: ``"mean"`` over the teachers kept, or their ``"sum"`` as in the authors' code.

    Paper: Son et al., Densely Guided Knowledge Distillation using Multiple Teacher Assistants, ICCV 2021,
    https://arxiv.org/abs/2009.08825.

    Example:
        >>> teacher, student = Ref("convnet", width=24), Ref("convnet", width=4)
        >>> for stage in DGKD(sizes=[16, 8]).plan(teacher, student):
        ...     print(stage.name, stage.teachers)
        assistant-1 ('teacher',)
        assistant-2 ('teacher', 'assistant-1')
        distilled ('teacher', 'assistant-1', 'assistant-2')
    """

    def __init__(
        self,
        *,
        models: Sequence[RefLike] | None = None,
        sizes: Sequence[int] | None = None,
        count: int | None = None,
        vary: str = "width",
        like: Literal["teacher", "student"] = "teacher",
        candidates: int | Sequence[RefLike] = 3,
        probe_epochs: int = 1,
        drop: int = 1,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__(
            models=models,
            sizes=sizes,
            count=count,
            vary=vary,
            like=like,
            candidates=candidates,
            probe_epochs=probe_epochs,
        )
        if drop < 0:
            raise PlanError(f"drop must be a number of teachers, 0 or more; got {drop}")
        if reduction not in ("mean", "sum"):
            raise PlanError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
        self.drop = drop
        self.reduction = reduction

    @override
    def _teachers_of(self, larger: Sequence[str]) -> tuple[str, ...]:
        return tuple(larger)

    @override
    def _taught(self, stage: Stage) -> Stage:
        return dataclasses.replace(stage, scheme=Ref("dense-guidance", drop=self.drop, reduction=self.reduction))
