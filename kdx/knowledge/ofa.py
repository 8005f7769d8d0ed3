"""OFA-KD: exits of the student's stages, projected to logits, learn the teacher's, whatever the architectures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack, get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import LOGITS, Captured
from kdx.features.adapters import BatchNorm, convolution, trained
from kdx.features.feature import Feature
from kdx.features.operands import Variant, check_choice, check_same_shape, in_full_precision
from kdx.knowledge.base import Knowledge
from kdx.knowledge.labels import label_masks
from kdx.losses import Over
from kdx.ranges import check_number, check_whole
from kdx.tap import TapNames, TapOptions

__all__ = ["OFA", "ofa"]


@in_full_precision
def ofa(
    student: Tensor,
    teacher: Tensor,
    targets: Any,
    *,
    gamma: float = 1.0,
    temperature: float = 1.0,
    variant: Variant = "code",
) -> Tensor:
    """Cross-entropy with the teacher's probabilities, of which that of the label's class is raised.

    Args:
        student: logits ``[N, C]``, any float dtype; computed in float32 (float64 stays).
        teacher: logits of the same shape.
        targets: the labels, int64 ``[N]``; ``-100`` marks a row without one, which counts for nothing.
        gamma: at least 1.
        temperature: T > 0, of both sides; there is no ``T^2``.
        variant: ``"code"``: ``-((1 + p_y)^gamma - 1) log q_y - sum_{i != y} p_i^gamma log q_i``; ``"paper"``:
            ``-(1 + p_y)^gamma log q_y - sum_{i != y} p_i log q_i``.

    Returns:
        A scalar, the mean over the rows with a label, 0 where there is none, with gradients to both.

    Example:
        >>> z, y = torch.tensor([[0.0, 0.0]]), torch.tensor([0])
        >>> [round(ofa(z, z, y, gamma=2.0, variant=v).item(), 4) for v in ("code", "paper")]
        [1.0397, 1.9062]
    """
    check_same_shape(student, teacher)
    is_target, labelled = label_masks("OFA", student, targets, 1)
    log_q, p = (student / temperature).log_softmax(1), (teacher / temperature).softmax(1)
    raised = (p + is_target.to(p.dtype)) ** gamma
    weights = raised - is_target.to(p.dtype) if variant == "code" else torch.where(is_target, raised, p)
    rows = -(weights * log_q.masked_fill(weights == 0, 0)).sum(1)
    return rows.masked_fill(~labelled, 0).sum() / labelled.sum().clamp(min=1)


class OFA(Knowledge):
    """Logits from exits on the student's stages, compared with the teacher's logits; labels say what to stress.

    Loss: the sum over the student's taps of :func:`ofa`, averaged over the rows with a label. A layer gets an exit,
    learned with the student: maps, and tokens whose grid is known, go through separable convolutions of stride 2 with
    BatchNorm and ReLU, one for each tap that is deeper, are averaged over their places and mapped to the C logits;
    vectors, and tokens of which it is said whether there is a class token, go through two linear layers. The tap
    ``logits`` is compared as it is. No feature of the teacher is read: in logits, what the architectures
    do differently is no longer there. Gradients reach the student and the exits; no ``T^2``, as in the authors' code.

    ``gamma`` raises the label's class: the surer the teacher is of it, the more. ``"code"`` weighs it by ``(1 +
    p_y)^gamma - 1``, the cross-entropy with the label being a term of its own, and the others by ``p_i^gamma``;
    ``"paper"`` by ``(1 + p_y)^gamma``, which has that cross-entropy in it, and the others by ``p_i``.

    The authors take four stages and the logits, each with weight 1, beside a cross-entropy of weight 1. Their exits on
    tokens are transformer blocks; here they are those above.

    Args:
        student: taps of the stages, from shallow to deep, of any layout: maps ``[N, C, H, W]``, tokens, vectors; and
            ``logits``, for that of the whole student.
        teacher: tap of the teacher's logits, ``[N, C]``.
        gamma: at least 1; one number, or one for each tap. The authors choose it for each pair of models.
        temperature: T > 0.
        width: channels of the exits before their last layer; None takes those of the deepest layer.
        variant: ``"paper"`` or ``"code"``, see above.
        **features: see :class:`kdx.tap.TapOptions`.

    Raises:
        ValueError: a gamma below 1, or other than one for each tap; in training, targets that are no labels, or logits
            of another form than ``[N, C]``.

    Paper: Hao et al., One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation,
    NeurIPS 2023, https://arxiv.org/abs/2310.19444; code: https://github.com/Hao840/OFAKD.

    Example:
        >>> s = Captured({"stage1": torch.randn(2, 4, 8, 8), "stage2": torch.randn(2, 8, 4, 4)})
        >>> t = Captured({"logits": torch.randn(2, 10)})
        >>> exits = OFA(student=("stage1", "stage2"))
        >>> exits.setup(s, t)
        >>> [tuple(logits.shape) for logits in exits.exit_logits(s)]
        [(2, 10), (2, 10)]
    """

    kind = "feature"
    over = Over.LABELLED

    def __init__(
        self,
        *,
        student: TapNames,
        teacher: str = LOGITS,
        gamma: float | Sequence[float] = 1.0,
        temperature: float = 1.0,
        width: int | None = None,
        variant: Variant = "code",
        **features: Unpack[TapOptions],
    ) -> None:
        super().__init__(student=student, teacher=teacher, **features)
        given = gamma if isinstance(gamma, Sequence) else [gamma]
        self.gamma = tuple(check_number("gamma", value, least=1) for value in given)
        self.temperature = check_number("temperature", temperature, above=0)
        self.width = None if width is None else check_whole("width", width, least=1)
        check_choice("variant", variant, get_args(Variant))
        self.variant: Variant = variant
        self.exits = nn.ModuleList()

    @property
    @override
    def ready(self) -> bool:
        return len(self.exits) > 0

    @override
    def setup(self, student: Captured, teacher: Captured) -> None:
        if self.ready:
            return
        classes = self._logits(teacher).shape[1]
        layers = self._layers(student)
        if len(self.gamma) not in (1, len(layers)):
            raise ValueError(
                f"gamma: expected one number, or one for each of {len(layers)} taps, got {len(self.gamma)}"
            )
        hidden = [feature for feature in layers if isinstance(feature, Feature)]
        for layer in layers:
            if isinstance(layer, Tensor):
                check_same_shape(layer, self._logits(teacher))
                self.exits.append(nn.Identity())
                continue
            x = _readable(layer)
            width = self.width or hidden[-1].channels
            deeper = len(hidden) - 1 - next(k for k, feature in enumerate(hidden) if feature is layer)
            self.exits.append(trained(_exit(x.shape[1], width, classes, deeper=deeper, axes=x.dim() - 2), x))

    def exit_logits(self, student: Captured) -> list[Tensor]:
        """The logits ``[N, C]`` of every tap: from its exit, or those of the student."""
        if not self.ready:
            raise RuntimeError("OFA has no exits yet; call scheme.setup(batch) before the optimizer is built")
        layers = self._layers(student)
        inputs = [layer if isinstance(layer, Tensor) else _readable(layer) for layer in layers]
        with torch.autocast(inputs[0].device.type, enabled=False):
            return [exit(x) for exit, x in zip(self.exits, inputs, strict=True)]

    @override
    def forward(self, student: Captured, teacher: Captured, batch: Batch) -> Tensor:
        logits = self._logits(teacher)
        targets = None if batch is None else batch.targets
        found = self.exit_logits(student)
        gammas = self.gamma if len(self.gamma) > 1 else self.gamma * len(found)
        options: dict[str, Any] = {"temperature": self.temperature, "variant": self.variant}
        losses = [ofa(s, logits, targets, gamma=gamma, **options) for s, gamma in zip(found, gammas, strict=True)]
        return torch.stack(losses).sum()

    def _logits(self, teacher: Captured) -> Tensor:
        logits = teacher[self.teacher_taps[0]]
        if logits.dim() != 2 or logits.shape[1] < 2:
            raise ValueError(
                f"OFA compares exits with logits [N, C] of two classes or more, and the teacher's at "
                f"{self.teacher_taps[0]!r} have shape {list(logits.shape)}; for a class of every pixel or token take "
                "'soft-targets'"
            )
        return logits

    def _layers(self, student: Captured) -> list[Feature | Tensor]:
        """Of every tap the feature, or the logits themselves."""
        features = iter(self.student_features(student, [tap for tap in self.student_taps if tap != self._own]))
        return [student[name] if name == self._own else next(features) for name in student.names(self.student_taps)]

    @property
    def _own(self) -> str:
        """The tap of the student's own logits."""
        return self.responses.tap

    @override
    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, temperature={self.temperature}, variant={self.variant!r}"


def _readable(layer: Feature) -> Tensor:
    """A map ``[N, C, ...]`` where there are places, else a vector ``[N, C]``, in full precision."""
    feature = layer.full()
    if feature.is_vector or (feature.is_tokens and feature.layout.grid is None):
        return feature.vector()
    return feature.map()


def _exit(inputs: int, width: int, classes: int, *, deeper: int, axes: int) -> nn.Module:
    """The way from a stage to logits: as many halvings as stages follow, the mean over places, a linear layer."""
    if axes == 0:
        return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, classes))
    layers: list[nn.Module] = [] if deeper else [convolution(inputs, width, axes, bias=True)]
    for left in range(deeper, 0, -1):
        outputs = width if left == 1 else 2 * inputs
        layers += [*_separable(inputs, inputs, axes, stride=2), *_separable(inputs, outputs, axes, stride=1)]
        inputs = outputs
    return nn.Sequential(*layers, _MeanOverPlaces(), nn.Linear(width, classes))


def _separable(inputs: int, outputs: int, axes: int, *, stride: int) -> list[nn.Module]:
    """A 3x3 convolution of each channel and a 1x1 convolution, with BatchNorm and ReLU."""
    by_channel = convolution(inputs, inputs, axes, 3, stride=stride, padding=1, groups=inputs)
    return [by_channel, convolution(inputs, outputs, axes), BatchNorm(outputs), nn.ReLU()]


class _MeanOverPlaces(nn.Module):
    """``[N, C, ...]`` -> ``[N, C]``."""

    @override
    def forward(self, feature: Tensor) -> Tensor:
        return feature.flatten(2).mean(2)
