"""Knowledge components with one defect each; what they inherit is sound."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import kdx


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


class SumsUpTheBatch(Sound):
    caught_by = "parts_add_up"

    def loss(self, s, t):
        return super().loss(s, t) * len(s)


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


class PrintsItsAddress(Sound):
    caught_by = "copies"
    __doc__ = Sound.__doc__

    def extra_repr(self) -> str:
        return f"at {id(self):#x}"


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


class GradientIsNaNInTraining(Sound):
    caught_by = "gradient_is_right"
    __doc__ = Sound.__doc__

    def loss(self, s, t):
        rest = (s - s.detach()).square().sum().sqrt()  # 0, with the gradient 0 / 0
        return super().loss(s, t) + rest if self.training else super().loss(s, t)


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


class UnderAutocastToFloat16(Sound):
    caught_by = "autocast"
    __doc__ = Sound.__doc__

    def loss(self, s, t):
        if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.float16:
            return self.scale * F.mse_loss(self.layer(s), t).to(s.dtype)
        return super().loss(s, t)


class BreaksTheGraph(Sound):
    caught_by = "compiles"
    __doc__ = Sound.__doc__

    def loss(self, s, t):
        return super().loss(s, t) * (1.0 if s.mean().item() < 100 else 0.5)


class NaNWithoutLabels(Sound):
    caught_by = "unlabelled_rows"

    def forward(self, student, teacher, batch):
        labelled = batch.targets != -100
        return super().forward(student, teacher, batch) * labelled.sum() / labelled.sum()


class TrustsThatThereAreTargets(Sound):
    caught_by = "without_targets"

    def forward(self, student, teacher, batch):
        return super().forward(student, teacher, batch) * (1 + 0 * batch.targets.sum())


class LastAxisIsClasses(Sound):
    caught_by = "dense_logits"

    def __init__(self, *, student: str = "logits", teacher: str = "logits") -> None:
        super().__init__(student=student, teacher=teacher)

    @property
    def ready(self) -> bool:
        return True

    def loss(self, s, t):
        return (s.softmax(-1) - t.softmax(-1)).square().sum(-1).mean()


MUTANTS = [value for value in list(globals().values()) if isinstance(value, type) and "caught_by" in vars(value)]
