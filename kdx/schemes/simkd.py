"""SimKD: a student that ends in its teacher's classifier."""

from __future__ import annotations

import copy
from typing import Any, Self, Unpack

import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import Output, Taps, unwrap
from kdx.features.adapters import bottleneck, match, pool
from kdx.features.feature import Feature, read_features
from kdx.knowledge.simkd import SimKD as SimKDLoss
from kdx.modes import evaluating, hold
from kdx.schemes.offline import Offline
from kdx.tap import TapName, TapOptions, Told, tap_of
from kdx.teachers import Frozen, Teacher, as_teacher

__all__ = ["ReusedClassifier", "SimKD"]


class ReusedClassifier(nn.Module):
    """A model up to one layer, a projector to the teacher's last feature, and the teacher's classifier.

    It is an ordinary model: called on inputs it returns logits, and its weights are those of body, projector and
    classifier together. The classifier is frozen and stays in evaluation mode.

    Args:
        body: the student; what it computes after ``layer`` is not used.
        layer: tap of the feature to project.
        classifier: the teacher's classifier, ``[N, D]`` to logits; a copy is taken.
        output: see :class:`kdx.Taps`.
        told: what is known of the feature.
    """

    def __init__(
        self,
        body: nn.Module,
        layer: TapName,
        classifier: nn.Module,
        *,
        output: Output = None,
        told: Told | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        self.layer = layer
        self.told = told
        self.projector = nn.Sequential()  # filled by build; here already, so that it can be tapped
        self.classifier = copy.deepcopy(classifier).requires_grad_(False).eval()
        self.training = body.training
        self.size: tuple[int, ...] | None = None
        self.pooled = False
        self.taps = Taps(body, (layer,), output=output)

    @property
    def ready(self) -> bool:
        """Whether the projector exists."""
        return len(self.projector) > 0

    def feature(self, inputs: Any) -> Feature:
        """The body's output at the layer."""
        (feature,) = read_features(
            self.taps(inputs), (self.layer,), told=self.told, who="SimKD: the student's last feature"
        )
        return feature

    def build(self, student: Feature, teacher: Feature, *, reduction: int) -> None:
        """Makes the projector from one example of each feature.

        A 1x1, a 3x3 (1x1 for a single pixel) and a 1x1 convolution, each with BatchNorm and ReLU, and
        ``1 / reduction`` of the teacher's channels inside. The student's map is average-pooled first if it is larger
        than the teacher's.
        """
        source, target = match(student, teacher)
        self.pooled = source.dim() == 2
        self.size = tuple(target.shape[2:]) or (1, 1)
        width, kernel = target.shape[1], 1 if set(self.size) == {1} else 3
        hidden = max(width // reduction, 1)
        layers = bottleneck(source.shape[1], hidden, width, end=True, kernel=kernel, axes=len(self.size))
        self.projector.extend(layers.to(student.tensor.device, student.tensor.dtype).children())

    @override
    def forward(self, inputs: Any) -> Tensor:
        if self.size is None:
            raise RuntimeError("the student has no projector yet; call scheme.setup(batch), as kdx.fit does")
        feature = self.feature(inputs)
        hold(self.classifier)
        grid = feature.vector()[:, :, None, None] if self.pooled else feature.map()
        projected = self.projector(pool(grid, self.size))
        logits: Tensor = self.classifier(projected.flatten(2).mean(2))
        return logits

    @override
    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.classifier.eval()
        return self


class SimKD(Offline):
    """The student learns to feed the teacher's classifier, which it keeps.

    Total: ``mean((proj(F_s) - F_t)^2)``, no labels and no soft targets. The student that is trained, evaluated and
    exported is a :class:`ReusedClassifier`: the given student up to ``student_layer``, a projector learned with it and
    a frozen copy of the teacher's classifier. Its cost holds all three; to load exported weights again, build it the
    same way.

    Args:
        student: the model to train, up to ``student_layer``.
        teacher: a trained model, or a :class:`kdx.teachers.Frozen` one.
        student_layer: tap of the student's last feature.
        teacher_layer: tap of the teacher's last feature; its mean over pixels is what enters the classifier.
        classifier: name of the teacher's module that turns this vector into logits, as ``fc``.
        student_classifier: name of the student's classifier; it is replaced by nothing, in place, so that it costs
            nothing. None leaves it where it is, unused.
        reduction: the projector has the teacher's channels divided by this inside.
        student_output: see :class:`kdx.Taps`.
        teacher_output: the same for the teacher.
        **features: see :class:`kdx.tap.TapOptions`.

    Raises:
        CaptureError: a layer that does not exist.
        ValueError: at ``setup``, if the classifier does not give the teacher's logits for the pooled feature.

    Paper: Chen et al., Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022,
    https://arxiv.org/abs/2203.14001.

    Example:
        >>> import torch
        >>> def net(width):
        ...     pool = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
        ...     return torch.nn.Sequential(torch.nn.Conv2d(1, width, 3), *pool, torch.nn.Linear(width, 10))
        >>> scheme = SimKD(net(4), net(16), student_layer="0", teacher_layer="0", classifier="3")
        >>> batch = torch.randn(2, 1, 8, 8), torch.zeros(2)
        >>> scheme.setup(batch)
        >>> scheme.students["student"](batch[0]).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Teacher,
        *,
        student_layer: TapName,
        teacher_layer: TapName,
        classifier: str,
        student_classifier: str | None = None,
        reduction: int = 2,
        student_output: Output = None,
        teacher_output: Output = None,
        **features: Unpack[TapOptions],
    ) -> None:
        told = Told.of(features, type(self))
        student_layer, teacher_layer = tap_of(student_layer), tap_of(teacher_layer)
        teacher = as_teacher(teacher, teacher_output)
        if not isinstance(teacher, Frozen):
            raise TypeError(f"teacher must be one model, whose classifier is reused; got {type(teacher).__name__}")
        if reduction < 1:
            raise ValueError(f"reduction must be >= 1, got {reduction}")
        Taps(teacher.model, (classifier,))  # a wrong name fails here and lists the near ones
        if student_classifier is not None:
            Taps(student, (student_classifier,))
            unwrap(student).set_submodule(student_classifier, nn.Identity())
        head = unwrap(teacher.model).get_submodule(classifier)
        assembled = ReusedClassifier(student, student_layer, head, output=student_output, told=told)
        loss = SimKDLoss(teacher=teacher_layer, **features)
        super().__init__(assembled, teacher, task=None, knowledge={"simkd": loss})
        self.told = told
        self.assembled = assembled
        self.teacher_layer = teacher_layer
        self.reduction = reduction

    @property
    @override
    def ready(self) -> bool:
        return self.assembled.ready

    @override
    def setup(self, batch: Batch | Any) -> None:
        if self.ready:
            return
        batch = Batch.of(batch)
        with evaluating(self.assembled), torch.no_grad():
            teacher = self.teacher(batch)
            (feature,) = read_features(
                teacher, (self.teacher_layer,), told=self.told, who="SimKD: the teacher's last feature"
            )
            self._check(feature, teacher.logits)
            student = self.assembled.feature(batch.inputs)
            self.assembled.build(student, feature, reduction=self.reduction)

    def _check(self, feature: Feature, expected: Tensor) -> None:
        if feature.is_tokens:
            raise ValueError(
                f"teacher_layer {self.teacher_layer!r} has shape {list(feature.tensor.shape)}, tokens; expected a map "
                "[N, C, H, W] or a vector [N, D]: for a transformer tap the classifier's input as 'name:input'"
            )
        found = self.assembled.classifier(feature.vector())
        if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-3, atol=1e-3):
            raise ValueError(
                f"the classifier does not give the teacher's logits from the pooled feature of {self.teacher_layer!r}, "
                "so it cannot be reused on it; tap the last feature before pooling, or the classifier's input as "
                "'name:input', and name the module that takes it"
            )
