"""Components with one defect each; what they inherit is sound."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import kdx
from kdx.assistants.base import ModelRef, Stage
from kdx.losses import Losses


class Sound(kdx.Knowledge):
    """Mean squared error through a learned layer.

    Args:
        scale: multiplies the loss.
        student: tap ``[N, D]``.
        teacher: tap ``[N, D]``.

    Paper: Nobody 2020, https://example.org.

    Example:
        >>> Sound()
        Sound()
    """

    def __init__(self, scale: float = 1.0, *, student: str = "a", teacher: str = "b") -> None:
        super().__init__(student=student, teacher=teacher)
        self.scale = scale
        self.layer: nn.Module | None = None

    @property
    def ready(self) -> bool:
        return self.layer is not None

    def setup(self, student, teacher) -> None:
        if self.layer is None:
            self.layer = nn.Linear(student[self.student_taps[0]].shape[1], teacher[self.teacher_taps[0]].shape[1])

    def sides(self, student, teacher):
        s, t = student[self.student_taps[0]], teacher[self.teacher_taps[0]]
        dtype = torch.float64 if s.dtype == torch.float64 else torch.float32
        return s.to(dtype), t.to(dtype)

    def loss(self, s, t):
        with torch.autocast("cpu", enabled=False):
            return self.scale * F.mse_loss(self.layer(s), t)

    def forward(self, student, teacher, batch):
        return self.loss(*self.sides(student, teacher))


class Undocumented(Sound):
    """Nothing about its options."""

    caught_by = "documented"


class SharesState(Sound):
    caught_by = "copies"
    __doc__ = Sound.__doc__
    memory: list = []  # noqa: RUF012  # the defect

    def forward(self, student, teacher, batch):
        if self.training:
            self.memory.append(1)
        return super().forward(student, teacher, batch) + 0.1 * len(self.memory)


class CannotBePickled(Sound):
    caught_by = "pickles"
    __doc__ = Sound.__doc__

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.norm = lambda x: x


class PartsInAList(Sound):
    caught_by = "learnable_parts"
    __doc__ = Sound.__doc__

    def setup(self, student, teacher) -> None:
        super().setup(student, teacher)
        self.more = [nn.Linear(2, 2)]


class PartsInForward(Sound):
    caught_by = "learnable_parts"
    __doc__ = Sound.__doc__

    @property
    def ready(self) -> bool:
        return True

    def setup(self, student, teacher) -> None:
        pass

    def forward(self, student, teacher, batch):
        Sound.setup(self, student, teacher)
        return super().forward(student, teacher, batch)


class StateInAnAttribute(Sound):
    caught_by = "state_dict"
    __doc__ = Sound.__doc__

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.calls = 0

    def forward(self, student, teacher, batch):
        self.calls += self.training
        return super().forward(student, teacher, batch) * (1 + 0.1 * self.calls)


class NotScalar(Sound):
    caught_by = "finite_scalar"
    __doc__ = Sound.__doc__

    def loss(self, s, t):
        return super().loss(s, t)[None]


class NotFiniteInEvaluation(Sound):
    caught_by = "finite_scalar"
    __doc__ = Sound.__doc__

    def loss(self, s, t):
        return super().loss(s, t) / self.training


class Detached(Sound):
    caught_by = "gradient_reaches_the_student"
    __doc__ = Sound.__doc__

    def loss(self, s, t):
        return super().loss(s.detach(), t)


class DeadParameter(Sound):
    caught_by = "gradient_reaches_learnable_parts"
    __doc__ = Sound.__doc__

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.unused = nn.Parameter(torch.zeros(3))


class ChangesTheTeacher(Sound):
    caught_by = "inputs_unchanged"
    __doc__ = Sound.__doc__

    def forward(self, student, teacher, batch):
        teacher[self.teacher_taps[0]].sub_(1e-3)
        return super().forward(student, teacher, batch)


class ChangesTheLabels(Sound):
    caught_by = "inputs_unchanged"
    __doc__ = Sound.__doc__

    def forward(self, student, teacher, batch):
        batch.targets.clamp_(max=1)
        return super().forward(student, teacher, batch)


class RandomOfItsOwn(Sound):
    caught_by = "same_seed_same_loss"
    __doc__ = Sound.__doc__
    generator = torch.Generator()

    def loss(self, s, t):
        return super().loss(s, t + torch.randn(t.shape, generator=self.generator))


class ReadsAnotherTap(Sound):
    caught_by = "reads_only_its_taps"
    __doc__ = Sound.__doc__

    def forward(self, student, teacher, batch):
        return super().forward(student, teacher, batch) + 0 * sum(value.sum() for value in teacher.values())


class DeclaresTooMuch(Sound):
    caught_by = "reads_only_its_taps"
    __doc__ = Sound.__doc__

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.teacher_taps = ("b", "c")


class NeedsAnIndexSilently(Sound):
    caught_by = "index"
    __doc__ = Sound.__doc__

    def forward(self, student, teacher, batch):
        return super().forward(student, teacher, batch) + 0.0 * batch.index.sum()


class SaysItNeedsAnIndex(Sound):
    caught_by = "index"
    __doc__ = Sound.__doc__
    needs_index = True


class BatchOfOneIsNaN(Sound):
    caught_by = "batch_of_one"
    __doc__ = Sound.__doc__

    def loss(self, s, t):
        return super().loss(s, t) / (len(s) - 1)


class LooksAtTheOrder(Sound):
    caught_by = "batch_order"
    __doc__ = Sound.__doc__

    def loss(self, s, t):
        return super().loss(s, t.roll(1, 0))


class NotZeroWhenEqual(Sound):
    caught_by = "zero_when_equal"
    __doc__ = Sound.__doc__
    zero_when_equal = True


class WrongGradient(Sound):
    caught_by = "gradient_is_right"
    __doc__ = Sound.__doc__

    def loss(self, s, t):
        return super().loss(s, t) + (s * s.detach()).sum() * 0.1


class HalfPrecision(Sound):
    caught_by = "half_precision"
    __doc__ = Sound.__doc__

    def sides(self, student, teacher):
        s, t = super().sides(student, teacher)
        if student[self.student_taps[0]].dtype == torch.bfloat16:
            s = s * (1 + 1e-2)  # what rounding the loss itself costs
        return s, t


class UnderAutocast(Sound):
    caught_by = "autocast"
    __doc__ = Sound.__doc__

    def loss(self, s, t):
        return self.scale * F.mse_loss(self.layer(s), t).to(s.dtype)


class BreaksTheGraph(Sound):
    caught_by = "compiles"
    __doc__ = Sound.__doc__

    def loss(self, s, t):
        return super().loss(s, t) * (1.0 if s.mean().item() < 100 else 0.5)


KNOWLEDGE = [value for value in list(globals().values()) if isinstance(value, type) and "caught_by" in vars(value)]


class Plan(kdx.Assistant):
    """One model between teacher and student."""

    def plan(self, teacher, student):
        middle = ModelRef(student.name, {"width": 4})
        return [
            Stage("assistant", "distilled", middle, ("teacher",)),
            Stage("distilled", "distilled", student, ("assistant",)),
        ]


class EndsEarly(Plan):
    caught_by = "plan_ends_with_the_student"

    def plan(self, teacher, student):
        return super().plan(teacher, student)[:1]


class TaughtByTheFuture(Plan):
    caught_by = "teachers_come_first"

    def plan(self, teacher, student):
        first, last = super().plan(teacher, student)
        return [Stage("assistant", "distilled", first.model, ("distilled",)), last]


class Random(Plan):
    caught_by = "deterministic"

    def plan(self, teacher, student):
        last = super().plan(teacher, student)[1]
        state = torch.get_rng_state()
        width = torch.randint(1000, ()).item()
        torch.set_rng_state(state)
        return [Stage("assistant", "distilled", ModelRef("convnet", {"width": width}), ("teacher",)), last]


class BuildsModels(Plan):
    caught_by = "moves_no_weights"

    def plan(self, teacher, student):
        state = torch.get_rng_state()
        nn.Linear(2, 2)
        torch.set_rng_state(state)
        return super().plan(teacher, student)


class EditsOptions(Plan):
    caught_by = "moves_no_weights"

    def plan(self, teacher, student):
        found = super().plan(teacher, ModelRef(student.name, dict(student.options)))
        student.options["width"] = 99
        return found


ASSISTANTS = [EndsEarly, TaughtByTheFuture, Random, BuildsModels, EditsOptions]


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


SCHEMES = [
    value
    for value in list(globals().values())
    if isinstance(value, type) and issubclass(value, kdx.Scheme) and "caught_by" in vars(value)
]
