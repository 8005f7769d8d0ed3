"""Flow of solution procedure: the correlations of one layer's channels with the next layer's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import Captured
from kdx.features.adapters import convolution, pool, to_maps, trained
from kdx.features.feature import Feature
from kdx.features.operands import Variant, check_choice, in_full_precision
from kdx.knowledge.base import Knowledge
from kdx.layout import Axes, Layout
from kdx.tap import TapNames, TapOptions

__all__ = ["FSP", "flow", "fsp"]


def flow(shallow: Feature | Tensor, deep: Feature | Tensor, *, variant: Variant = "code") -> Tensor:
    """The FSP matrix of two layers of one model: ``G[n, a, b] = mean over pixels of shallow[n, a] deep[n, b]``.

    Args:
        shallow: a map ``[N, A, H, W]``, a vector ``[N, A]`` (one pixel), or any other feature; see
            :func:`kdx.features.to_maps`.
        deep: likewise, ``[N, B, H', W']``; the larger map is pooled to the smaller, each axis by itself.
        variant: ``"paper"`` pools by the maximum, ``"code"`` by the mean.

    Returns:
        ``[N, A, B]`` in float32 (float64 if an operand is).
    """
    one, other = to_maps([shallow, deep])
    return _flow(one, other, variant)


@in_full_precision
def _flow(shallow: Tensor, deep: Tensor, variant: Variant) -> Tensor:
    size = [min(sides) for sides in zip(shallow.shape[2:], deep.shape[2:], strict=True)]
    shallow, deep = (pool(one, size, largest=variant == "paper") for one in (shallow, deep))
    return shallow.flatten(2) @ deep.flatten(2).mT / math.prod(size)


def fsp(
    student: Sequence[Feature | Tensor], teacher: Sequence[Feature | Tensor], *, variant: Variant = "code"
) -> Tensor:
    """Squared difference between the flows of consecutive layers, a scalar, 0 for an empty batch; see :class:`FSP`.

    Args:
        student: two layers or more, from shallow to deep, as :func:`flow` takes them.
        teacher: as many layers, each with the channels of its partner.
        variant: ``"paper"`` or ``"code"``.

    Raises:
        ValueError: fewer than two layers, different numbers of them, or partners of different batch or channels.
    """
    check_choice("variant", variant, ("paper", "code"))
    if len(student) != len(teacher) or len(student) < 2:
        raise ValueError(
            f"student and teacher: expected as many layers of each, 2 or more, got {len(student)} and {len(teacher)}; "
            "a flow goes from one layer to the next"
        )
    of_student, of_teacher = to_maps(student), to_maps(teacher)
    for i, (s, t) in enumerate(zip(of_student, of_teacher, strict=True)):
        if s.shape[:2] != t.shape[:2]:
            given, wanted = (list(Feature.of(side[i]).tensor.shape) for side in (student, teacher))
            raise ValueError(
                f"student: expected the batch and channels of the teacher's {wanted}, got {given}; tap layers of equal "
                "width, or use the component, which learns an adapter"
            )
    losses = []
    for i in range(len(student) - 1):
        gap = _flow(of_student[i], of_student[i + 1], variant) - _flow(of_teacher[i], of_teacher[i + 1], variant)
        count = gap.shape[0] if variant == "paper" else gap.numel()
        losses.append((gap * gap).sum() / max(1, count))
    first, *rest = losses
    for loss in rest:
        first = first + loss
    return first


class FSP(Knowledge):
    """Squared difference between the flows from layer to layer of student and teacher.

    Loss: ``sum_i mean((G_s,i - G_t,i)^2)`` over samples and entries, where ``G_i[a, b]`` is the mean over pixels of
    channel a of layer i times channel b of layer i + 1, and the larger of two maps is average-pooled to the smaller
    (``"code"``, the common form). ``"paper"`` pools by the maximum and takes ``||G_s,i - G_t,i||^2``, summed over
    entries, averaged over samples. No ``T^2``. Gradients reach both sides and the adapters.

    Student layers need the channels of their partners, not their size: where channels differ, a 1x1 convolution is
    learned with the student. The paper has students of the teacher's widths, takes the first and last layer of each
    stage (one component per stage), and trains in two stages, this loss alone first, then the task alone; beside the
    task, with weight 50, it is a common variant. Memory: ``N A B`` numbers per flow.

    Args:
        student: taps of two layers or more, from shallow to deep; maps ``[N, C, H, W]``, tokens on a
            grid, vectors or logits.
        teacher: as many taps; partners in order.
        variant: ``"code"`` or ``"paper"``, see above.
        **features: see :class:`kdx.tap.TapOptions`.

    Paper: Yim et al., A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer
    Learning, CVPR 2017,
    https://openaccess.thecvf.com/content_cvpr_2017/html/Yim_A_Gift_From_CVPR_2017_paper.html.

    Example:
        >>> import torch
        >>> component = FSP(student=("a", "b"), teacher=("a", "b"))
        >>> s = Captured({"a": torch.ones(1, 2, 4, 4), "b": torch.ones(1, 3, 2, 2)})
        >>> t = Captured({"a": torch.ones(1, 2, 4, 4), "b": 3 * torch.ones(1, 3, 2, 2)})
        >>> component.setup(s, t)
        >>> component(s, t, None).item()
        4.0
    """

    kind = "relation"

    def __init__(
        self,
        *,
        student: TapNames,
        teacher: TapNames,
        variant: Variant = "code",
        **features: Unpack[TapOptions],
    ) -> None:
        super().__init__(student=student, teacher=teacher, **features)
        check_choice("variant", variant, ("paper", "code"))
        self.variant = variant
        self.adapters: nn.ModuleList | None = None

    @property
    @override
    def ready(self) -> bool:
        return self.adapters is not None

    @override
    def setup(self, student: Captured, teacher: Captured) -> None:
        if self.adapters is not None:
            return
        s, t = self.student_features(student), self.teacher_features(teacher)
        if len(s) != len(t) or len(s) < 2:
            raise ValueError(
                f"student taps {self.student_taps} are {len(s)} layers, teacher taps {self.teacher_taps} are {len(t)}; "
                "flows need two layers or more and as many of each"
            )
        adapters = []
        for one, other in zip(to_maps(s), to_maps(t), strict=True):
            inputs, outputs = one.shape[1], other.shape[1]
            part = nn.Identity() if inputs == outputs else convolution(inputs, outputs, one.dim() - 2)
            adapters.append(trained(part, one))
        self.adapters = nn.ModuleList(adapters)

    @override
    def forward(self, student: Captured, teacher: Captured, batch: Batch) -> Tensor:
        if self.adapters is None:
            raise RuntimeError("FSP has no adapters yet; call scheme.setup(batch) before the optimizer is built")
        s = to_maps([feature.full() for feature in self.student_features(student)])
        with torch.autocast(s[0].device.type, enabled=False):  # the adapters stay in full precision too
            adapted = [adapter(one) for adapter, one in zip(self.adapters, s, strict=True)]
        return fsp(_maps(adapted), _maps(to_maps(self.teacher_features(teacher))), variant=self.variant)

    @override
    def extra_repr(self) -> str:
        return f"variant={self.variant!r}"


def _maps(tensors: Sequence[Tensor]) -> list[Feature]:
    """Maps ``[N, C, ...]`` as features, a row of places not taken for tokens."""
    axes: dict[int, Axes] = {3: "ncl", 4: "nchw", 5: "ncdhw"}
    return [Feature(tensor, Layout(axes[tensor.dim()])) for tensor in tensors]
