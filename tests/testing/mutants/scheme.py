"""Schemes with one defect each; what they inherit is sound."""

from __future__ import annotations

import torch

import kdx
from kdx.losses import Losses
from tests.testing.mutants.knowledge import Sound


class Pair(kdx.Offline):
    """Offline with soft targets."""

    def __init__(self) -> None:
        student, teacher = kdx.testing.toy_model(), kdx.testing.toy_model(6, seed=1)
        super().__init__(
            student, teacher, knowledge={"kd": kdx.SoftTargets(2.0), "layer": Sound(student="flat", teacher="flat")}
        )


class TotalIsNotTheSum(Pair):
    caught_by = "losses"

    def forward(self, batch):
        losses = super().forward(batch)
        return Losses(losses.total * 2, losses.terms)


class WantsATuple(Pair):
    caught_by = "batch_forms"

    def forward(self, batch):
        if isinstance(batch, kdx.Batch):
            batch = batch._replace(targets=batch.targets.flip(0))
        return super().forward(batch)


class SetupTrains(Pair):
    caught_by = "setup_changes_no_model"

    def setup(self, batch) -> None:
        self.student(batch.inputs)  # moves the running statistics
        super().setup(batch)


class ForgetsAStudent(Pair):
    caught_by = "gradient_reaches_every_student"

    @property
    def students(self):
        return {"student": self.student, "second": self.other[0]}

    def __init__(self) -> None:
        super().__init__()
        self.other = [kdx.testing.toy_model()]


class TrainsTheTeacher(Pair):
    caught_by = "no_gradient_in_a_teacher"

    def forward(self, batch):
        losses = super().forward(batch)
        extra = self.teacher.model(kdx.Batch.of(batch).inputs).square().mean()
        return Losses.of({**losses.terms, "extra": extra})


class MovesTheTeachersStatistics(Pair):
    caught_by = "no_gradient_in_a_teacher"

    def forward(self, batch):
        with torch.no_grad():
            self.teacher.model.train()(kdx.Batch.of(batch).inputs)
        return super().forward(batch)


class Leaks(kdx.Mutual):
    caught_by = "students_exchange_no_gradient"

    def __init__(self) -> None:
        super().__init__(
            [kdx.testing.toy_model(), kdx.testing.toy_model(seed=1)], knowledge={"kd": kdx.SoftTargets(1.0)}
        )

    def forward(self, batch):
        losses = super().forward(batch)
        leak = self.peers[1](kdx.Batch.of(batch).inputs).square().mean()
        return Losses.of({**losses.terms, "peer0/kd": losses.terms["peer0/kd"] + leak})


class TeacherFollowsTheMode(Pair):
    caught_by = "teachers_keep_their_mode"

    def forward(self, batch):
        self.teacher.train_mode = self.training
        return super().forward(batch)


class CountsSamplesForLabels(Pair):
    caught_by = "parts_add_up"

    def terms(self, batch):
        labelled = batch.targets != -100
        logits = self.taps(batch.inputs).logits
        mean = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum") / labelled.sum()
        return {"ce": mean} | {name: term for name, term in super().terms(batch).items() if name != "task"}


class StateOnTheClass(Pair):
    caught_by = "no_shared_state"
    seen: list = []  # noqa: RUF012  # the defect

    def forward(self, batch):
        losses = super().forward(batch)
        StateOnTheClass.seen.append(1)
        return Losses.of({**losses.terms, "seen": losses.terms["task"] * len(StateOnTheClass.seen)})


class ForgetsOnResume(Pair):
    caught_by = "exact_resume"

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def step_end(self, step, total) -> None:
        super().step_end(step, total)
        self.steps += 1

    def forward(self, batch):
        losses = super().forward(batch)
        return Losses.of({name: term * (1 + self.steps) for name, term in losses.terms.items()})


class WrongSign(Pair):
    caught_by = "training_lowers_the_loss"

    def forward(self, batch):
        terms = super().forward(batch).terms
        # the value is that of the loss, its gradient points the other way
        return Losses.of({name: 2 * term.detach() - term for name, term in terms.items()})


class NaNWithoutLabels(Pair):
    caught_by = "unlabelled_batch"

    def terms(self, batch):
        labelled = (batch.targets != -100).sum()
        return {name: term.scaled(labelled / labelled) for name, term in super().terms(batch).items()}


class TrustsThatThereAreTargets(Pair):
    caught_by = "without_targets"

    def terms(self, batch):
        return super().terms(batch._replace(targets=batch.targets.clone()))


class LastAxisIsClasses(Pair):
    caught_by = "dense_logits"

    def terms(self, batch):
        logits = self.taps(batch.inputs).logits
        return {**super().terms(batch), "confidence": 1 + logits.softmax(-1).amax(-1).mean()}


class ThawsTheStudent(Pair):
    caught_by = "frozen_parts"

    def setup(self, batch) -> None:
        super().setup(batch)
        self.student.requires_grad_()


MUTANTS = [
    value
    for value in list(globals().values())
    if isinstance(value, type) and issubclass(value, kdx.Scheme) and "caught_by" in vars(value)
]
