"""Data-free distillation: a generator searches for the images on which the student does not match its teacher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import Captured, Output
from kdx.knowledge.soft_targets import SoftTargets
from kdx.losses import Mean, Over
from kdx.modes import borrowed_buffers, evaluating, unchanged_buffers
from kdx.ops import softmax_kl
from kdx.ranges import check_number, check_whole
from kdx.schemes.apart import check_apart
from kdx.schemes.base import KnowledgeTerms, setup_components, tap_components
from kdx.schemes.one_student import OneStudent
from kdx.schemes.parts.generator import ImageGenerator
from kdx.schemes.phase import Phase
from kdx.teachers import Frozen

__all__ = ["DataFree"]


class DataFree(OneStudent):
    """The teacher teaches on images that a generator makes; neither it nor the student ever sees a real one.

    A step has two phases (:attr:`kdx.Scheme.phases`) on one draw of noise z per sample:

    - ``generator``: ``generator_steps`` steps of the generator alone on ``-T^2 KL(p_t(G(z)) || p_s(G(z)))``, so that it
      looks for images on which the two disagree. The gradient reaches it through both models.
    - ``student``: ``student_steps`` steps of the student alone on ``sum_k w_k knowledge_k(s(x), t(x))`` at the images
      ``x = G(z)``, which stay what they are meanwhile; by default soft targets at temperature T.

    Nothing of the student moves in the generator's phase (its BatchNorm statistics neither), and nothing of the
    generator in the student's. Of a batch only the number of rows and, at ``setup``, the shape of an image are read:
    the training data may be anything of that shape. Generated images are normalised; train the teacher on data of
    about mean 0 and variance 1.

    Args:
        student: the model to train.
        teacher: a trained model, or a :class:`kdx.teachers.Frozen` one; gradients pass through it.
        knowledge: see :class:`kdx.Scheme`; replaces the soft targets. The paper adds attention transfer.
        generator: noise ``[N, noise]`` -> images; None makes an :class:`kdx.schemes.parts.generator.ImageGenerator`.
        noise: length of a noise vector.
        width: channels of the generator that is made.
        temperature: T in the generator's loss and in the default knowledge.
        generator_steps: n_G of the paper.
        student_steps: n_S of the paper.
        generator_lr: learning rate of Adam for the generator, annealed to 0 along a cosine. The student is trained by
            the optimizer of the run.
        student_output: see :class:`kdx.Taps`.
        teacher_output: the same for the teacher.

    Raises:
        TypeError: the teacher is no model and not Frozen: images must have a gradient through it.
        ValueError: at ``setup``, inputs that are not images, without a ``generator``.

    Paper: Micaelli, Storkey, Zero-shot Knowledge Transfer via Adversarial Belief Matching, NeurIPS 2019,
    https://arxiv.org/abs/1905.09768; code: https://github.com/polo5/ZeroShotKnowledgeTransfer. There the KL is a mean
    over classes too (a tenth of this one for ten classes) beside attention transfer with weight 250, and gradients are
    clipped to norm 5.

    Example:
        >>> import torch, kdx
        >>> student, teacher = kdx.testing.toy_model(), kdx.testing.toy_model(8, seed=1)
        >>> scheme = DataFree(student, teacher, noise=4, width=4)
        >>> batch = kdx.testing.toy_batches()[0]
        >>> scheme.setup(batch)
        >>> [(phase.name, phase.steps, list(scheme(batch, phase.name).terms)) for phase in scheme.phases]
        [('generator', 1, ['generator/disagreement']), ('student', 10, ['kd'])]
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        knowledge: KnowledgeTerms | None = None,
        generator: nn.Module | None = None,
        noise: int = 100,
        width: int = 64,
        temperature: float = 1.0,
        generator_steps: int = 1,
        student_steps: int = 10,
        generator_lr: float = 1e-3,
        student_output: Output = None,
        teacher_output: Output = None,
    ) -> None:
        super().__init__(
            student,
            task=None,
            knowledge=knowledge or {"kd": SoftTargets(temperature)},
            student_output=student_output,
        )
        held = teacher if isinstance(teacher, Frozen) else Frozen(teacher, output=teacher_output)
        if held.model is student:
            raise ValueError("student and teacher are one module; the teacher would be trained. Pass a copy")
        held.check_passes_gradient()
        self.teacher = held
        self.generator = generator
        self.noise, self.width = check_whole("noise", noise, least=1), check_whole("width", width, least=1)
        self.temperature = check_number("temperature", temperature, above=0)
        self.generator_steps = check_whole("generator_steps", generator_steps, least=1)
        self.student_steps = check_whole("student_steps", student_steps, least=1)
        self.generator_lr = check_number("generator_lr", generator_lr, above=0)
        self._draws: dict[int, _Draw] = {}
        check_apart(self)
        tap_components(self.components, self.taps, self.teacher)

    @property
    @override
    def phases(self) -> tuple[Phase, ...]:
        if self.generator is None:
            raise RuntimeError("the generator is made from the shape of an image: call scheme.setup(batch) once")
        learners = (self.student, self.knowledge)
        return (
            Phase(
                "generator",
                self._search,
                tuple(self.generator.parameters()),
                optimizer={"name": "Adam", "lr": self.generator_lr},
                schedule="CosineAnnealingLR",
                steps=self.generator_steps,
            ),
            Phase(
                "student",
                self._teach,
                tuple(p for part in learners for p in part.parameters() if p.requires_grad),
                steps=self.student_steps,
            ),
        )

    @property
    @override
    def ready(self) -> bool:
        return self.generator is not None and super().ready

    @override
    def advance(self, step: int, total: int) -> None:
        super().advance(step, total)
        self._draws = {}

    @override
    def setup(self, batch: Batch | Any) -> None:
        batch = Batch.of(batch)
        inputs = batch.inputs
        if self.generator is None:
            if not isinstance(inputs, Tensor) or inputs.dim() != 4 or not inputs.is_floating_point():
                shown = list(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
                raise ValueError(f"data-free makes images [N, C, H, W], and the batch holds {shown}; give generator=")
            channels, height, width = inputs.shape[1:]
            self.generator = ImageGenerator((channels, height, width), noise=self.noise, width=self.width)
            self.generator.to(inputs.device, inputs.dtype).train(self.training)
        with evaluating(self.student), torch.no_grad(), unchanged_buffers(self.generator):
            images = self.generator(self._noise(batch))
            made = batch._replace(inputs=images, views={})
            setup_components(self.components, lambda: self.taps(images), lambda: self.teacher(made))

    def _search(self, batch: Batch) -> dict[str, Mean]:
        assert self.generator is not None  # the phases are known
        images = self.generator(self._draw(batch).noise)
        teacher = self.teacher.through(batch._replace(inputs=images, views={})).logits
        with borrowed_buffers(self.student):
            student = self.taps(images).logits
        divergence = softmax_kl(student, teacher, temperature=self.temperature, dim=self.responses.axis(student.shape))
        return {"generator/disagreement": Mean(-divergence, batch.rows, Over.ROWS)}

    def _teach(self, batch: Batch) -> dict[str, Mean]:
        draw = self._draw(batch)
        if draw.made is None:
            assert self.generator is not None  # the phases are known
            with torch.no_grad(), unchanged_buffers(self.generator):
                made = batch._replace(inputs=self.generator(draw.noise), views={})
            draw.made = made, self.teacher(made)
        made, teacher = draw.made
        return self.knowledge_terms(self.components, self.taps(made.inputs), teacher, made)

    def _draw(self, batch: Batch) -> _Draw:
        """The noise of a batch, one draw for both phases of a step."""
        key = id(batch.inputs)
        if key not in self._draws:
            self._draws[key] = _Draw(batch.inputs, self._noise(batch))
        return self._draws[key]

    def _noise(self, batch: Batch) -> Tensor:
        like = next(self.student.parameters())
        return torch.randn(batch.rows, self.noise, device=like.device, dtype=like.dtype)


class _Draw:
    """The noise drawn for one batch of a step, and the images made of it."""

    def __init__(self, inputs: Any, noise: Tensor) -> None:
        self.inputs = inputs  # kept, so that no later batch has its id
        self.noise = noise
        self.made: tuple[Batch, Captured] | None = None
