"""Channel-wise distillation: each channel responds where the teacher's does."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import LOGITS, Captured
from kdx.features.adapters import convolution, match_maps, trained
from kdx.features.feature import Feature
from kdx.features.matching import Strategy
from kdx.features.operands import check_same_shape
from kdx.knowledge.paired import PairedLayers
from kdx.knowledge.response import void_mask
from kdx.ops import softmax_kl
from kdx.tap import TapNames, TapOptions

__all__ = ["CWD", "cwd"]


def cwd(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 4.0,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """``T^2 / C sum_c KL(phi(t_c) || phi(s_c))`` with ``phi`` the softmax of ``x / T`` over the places of a channel.

    Args:
        student: ``[N, C, ...]`` with one axis of places or more, any float dtype; computed in float32 (float64 stays).
        teacher: of the same shape.
        temperature: T > 0.
        mask: bool ``[N, ...]``, the places that count; a sample without any adds 0 to the mean. None: all.
        backend: kernel backend, ``"auto"`` chooses.

    Returns:
        A scalar, the mean over the batch, 0 for an empty one, with gradients to both.

    Raises:
        ValueError: other shapes, or a single place, whose softmax is always 1.

    Example:
        >>> import torch
        >>> left, right = torch.tensor([4.0, 0.0]).view(1, 1, 1, 2), torch.tensor([0.0, 4.0]).view(1, 1, 1, 2)
        >>> round(cwd(left, right).item(), 4)
        7.3939
    """
    check_same_shape(student, teacher)
    if student.dim() < 3 or student.shape[2:].numel() < 2:
        raise ValueError(
            f"channel-wise distillation compares where a channel responds and needs places, [N, C, H, W], got shape "
            f"{list(student.shape)}; tap a layer before the pooling, or take 'soft-targets' for logits [N, C]"
        )
    s, t = student.flatten(2), teacher.flatten(2)  # [N, C, L]
    rows = None
    if mask is not None:
        if mask.shape != student.shape[:1] + student.shape[2:]:
            raise ValueError(
                f"mask: expected {[student.shape[0], *student.shape[2:]]}, a bool for every place of features of shape "
                f"{list(student.shape)}, got {list(mask.shape)}; compare features at the resolution of the mask"
            )
        hidden = ~mask.flatten(1)[:, None]  # [N, 1, L]
        s, t = s.masked_fill(hidden, -torch.inf), t.masked_fill(hidden, -torch.inf)
        rows = (~hidden).any(2).expand(s.shape[:2])
    total = softmax_kl(s, t, temperature=temperature, mask=rows, reduction="sum", backend=backend)
    return total / max(1, s.shape[0] * s.shape[1])


class CWD(PairedLayers):
    """Divergence between the places where the channels of teacher and student respond, on logits or on layers.

    Loss: ``T^2 / C sum_c KL(phi(t_c) || phi(s_c))``, where ``phi(x_c)`` is the softmax of ``x_c / T`` over the places
    (pixels) of channel c, summed over places, averaged over the batch, summed over the pairs of layers. So a channel
    of any height counts as much as another, and its foreground, where the teacher responds, most. Gradients reach the
    student and the adapters. Adding a number to a channel changes nothing.

    On logits ``[N, C, H, W]`` a channel is a class: weight 3 in the paper, beside the cross-entropy. There the task
    says where the class axis is, and pixels whose target is void (-100, as in segmentation) are in no softmax. On
    layers, weight 50 in the paper, sizes are matched by pooling, and where the channels are not as many a 1x1
    convolution, learned with the student, maps the student's to the teacher's. Tokens are compared on their grid,
    without those before it. Vectors, which have no places, are refused. The softmax over the classes of each pixel
    instead (pixel-wise distillation) is ``soft-targets``.

    Args:
        temperature: T > 0; 4 in the paper.
        void: whether pixels with target -100 are left out where the outputs of the task are compared; None: what the
            task says.
        student: tap or taps of maps ``[N, C, ...]``, from shallow to deep; the logits if nothing is written.
        teacher: tap or taps of maps.
        pairing: see :data:`kdx.features.Strategy`.
        seed: for ``pairing="random"``.
        backend: kernel backend, ``"auto"`` chooses; see :func:`kdx.ops.explain`.
        **features: see :class:`kdx.tap.TapOptions`.

    Raises:
        ValueError: a temperature that is not above 0; at set-up, features without places.

    Paper: Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021,
    https://arxiv.org/abs/2011.13256; code: https://github.com/irfanICMLL/TorchDistiller.

    Example:
        >>> from kdx.capture import Captured
        >>> s, t = Captured({"logits": torch.zeros(1, 3, 4, 4)}), Captured({"logits": torch.eye(4).expand(1, 3, 4, 4)})
        >>> knowledge = CWD()
        >>> knowledge.setup(s, t)
        >>> round(knowledge(s, t, None).item(), 4)
        0.1013
    """

    builds = True

    def __init__(
        self,
        temperature: float = 4.0,
        *,
        void: bool | None = None,
        student: TapNames = LOGITS,
        teacher: TapNames = LOGITS,
        pairing: Strategy = "explicit",
        seed: int = 0,
        backend: str = "auto",
        **features: Unpack[TapOptions],
    ) -> None:
        super().__init__(student=student, teacher=teacher, pairing=pairing, seed=seed, **features)
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature}")
        self.temperature = float(temperature)
        self.void = void
        self.backend = backend
        self.adapters = nn.ModuleList()

    @override
    def build(self, pairs: list[tuple[Feature, Feature]]) -> None:
        for student, teacher in pairs:
            s, t = match_maps(student, teacher)
            if s.shape[2:].numel() < 2:
                raise ValueError(
                    f"CWD compares where a channel responds: {student.where} has shape {list(student.tensor.shape)} "
                    f"and {teacher.where} {list(teacher.tensor.shape)}, which leaves one place, whose softmax is "
                    "always 1; tap layers before the pooling, or take 'soft-targets' for logits [N, C]"
                )
            same = s.shape[1] == t.shape[1]
            self.adapters.append(
                nn.Identity() if same else trained(convolution(s.shape[1], t.shape[1], s.dim() - 2), s)
            )

    @override
    def compare(self, pair: int, student: Feature, teacher: Feature) -> Tensor:
        return self._compare(pair, student, teacher, None)

    def _compare(self, pair: int, student: Feature, teacher: Feature, mask: Tensor | None) -> Tensor:
        s, t = match_maps(student, teacher)
        adapted = self.adapters[pair](s)
        return cwd(adapted, t, temperature=self.temperature, mask=mask, backend=self.backend)

    @override
    def forward(self, student: Captured, teacher: Captured, batch: Batch | None) -> Tensor:
        outputs = [name == self.responses.tap for name in student.names(self.student_taps)]
        s, t = self.layers(student, teacher)
        losses = []
        with self.in_full_precision(student):
            for pair, (i, j) in enumerate(self.pairs_among(len(s), len(t))):
                mask = self._mask(s[i], batch) if outputs[i] and batch is not None else None
                losses.append(self._compare(pair, s[i].full(), t[j].full(), mask))
        return torch.stack(losses).sum()

    def _mask(self, outputs: Feature, batch: Batch) -> Tensor | None:
        """The pixels of the task's outputs that are not void; None: all."""
        void = self.responses.void if self.void is None else self.void
        targets = self.responses.aligned(batch.targets)
        return void_mask(outputs.channels_first(), 1, targets, void=void, who=type(self).__name__)

    @override
    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
