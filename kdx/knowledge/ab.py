"""Activation boundaries: the student's neurons are active where the teacher's are."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx.features.adapters import BatchNorm, convolution, match_maps, trained
from kdx.features.feature import Feature
from kdx.features.matching import Strategy
from kdx.features.operands import check_same_shape, in_full_precision
from kdx.knowledge.paired import PairedLayers
from kdx.ranges import check_number
from kdx.tap import TapNames, TapOptions

__all__ = ["AB", "activation_boundaries"]


@in_full_precision
def activation_boundaries(student: Tensor, teacher: Tensor, *, margin: float = 1.0) -> Tensor:
    """Squared hinge of a student's responses at the side of 0 on which the teacher's lie.

    ``max(0, m - s)^2`` where the teacher is active (``t > 0``) and ``max(0, m + s)^2`` where it is not, summed over the
    elements of a sample and averaged over the batch. How large the teacher's response is plays no part.

    Args:
        student: ``[N, C, ...]`` before the ReLU, any float dtype; computed in float32 (float64 stays).
        teacher: of the same shape, before the ReLU.
        margin: m > 0, how far on its side a response must be to add nothing.

    Returns:
        A scalar with gradient to the student alone; 0 for an empty batch.

    Example:
        >>> s, t = torch.tensor([[2.0, 0.5, 0.5, -3.0]]), torch.tensor([[0.1, 9.0, -0.1, -5.0]])
        >>> activation_boundaries(s, t).item()  # 0 + 0.5^2 + 1.5^2 + 0
        2.5
    """
    check_same_shape(student, teacher)
    side = torch.where(teacher > 0, 1.0, -1.0).to(student.dtype)
    return (margin - side * student).clamp(min=0).square().sum() / max(1, student.shape[0])


class AB(PairedLayers):
    """Hinge that puts each response of the student on the side of 0 where the teacher's is, summed over pairs.

    Loss: ``sum_l 2^-(L-1-l) h(r(F_s), F_t)`` over the L pairs from shallow to deep. ``h`` sums over the elements of a
    sample ``max(0, m - s)^2`` where the teacher's response is above 0 and ``max(0, m + s)^2`` where it is not, averaged
    over the batch; no ``T^2``. So the student learns which neurons are active, which is the teacher's decision
    boundary in its layer, and not how strongly. Gradients reach the student and ``r``, a 1x1 convolution with BatchNorm
    learned with it, which is left out where student and teacher have the same number of channels. The halved weights
    of shallower layers are those of the authors' code. Sizes are matched by pooling.

    Tap what enters the ReLU, the output of a BatchNorm (``bn1``) or ``relu:input``, in a model whose ReLU does not
    work in place: after it nothing is negative, and a teacher that is never below 0 is refused at set-up.

    The paper initialises the student by this loss alone and then trains it as usual, by labels or by soft targets. The
    scheme ``boundary-stage`` is that first stage, the assistant ``boundaries-then-distil`` both. The authors weigh the
    sum by 3e-3 for CIFAR-10, 1e-3 elsewhere, and their CIFAR script has the teacher's BatchNorm normalise by the batch
    meanwhile (``batch_statistics: true`` in a recipe's section ``teacher``).

    Args:
        student: taps of maps ``[N, C, ...]``, tokens or vectors before the ReLU, from shallow to deep.
        teacher: taps before the ReLU.
        pairing: see :data:`kdx.features.Strategy`.
        margin: m > 0; 1 as the authors have it.
        seed: for ``pairing="random"``.
        **features: see :class:`kdx.tap.TapOptions`.

    Raises:
        ValueError: a margin that is not above 0; at set-up, a teacher's layer without a negative response.

    Paper: Heo et al., Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons, AAAI 2019,
    https://arxiv.org/abs/1811.03233; code: https://github.com/bhheo/AB_distillation.

    Example:
        >>> from kdx.capture import Captured
        >>> s, t = Captured({"bn": torch.zeros(2, 4, 2, 2)}), Captured({"bn": -torch.ones(2, 4, 2, 2)})
        >>> boundaries = AB(student="bn", teacher="bn")
        >>> boundaries.setup(s, t)
        >>> boundaries(s, t, None).item()
        16.0
    """

    builds = True

    def __init__(
        self,
        *,
        student: TapNames,
        teacher: TapNames,
        pairing: Strategy = "explicit",
        margin: float = 1.0,
        seed: int = 0,
        **features: Unpack[TapOptions],
    ) -> None:
        super().__init__(student=student, teacher=teacher, pairing=pairing, seed=seed, **features)
        self.margin = check_number("margin", margin, above=0)
        self.connectors = nn.ModuleList()

    @override
    def build(self, pairs: list[tuple[Feature, Feature]]) -> None:
        for student, teacher in pairs:
            if teacher.tensor.numel() and not (teacher.tensor < 0).any():
                raise ValueError(
                    f"AB learns where responses are below 0, and none of {teacher.where} is, in a batch of shape "
                    f"{list(teacher.tensor.shape)}; tap what enters the ReLU, as its BatchNorm or 'relu:input'"
                )
            s, t = match_maps(student, teacher)
            self.connectors.append(trained(_connector(s.shape[1], t.shape[1], s.dim() - 2), s))

    @override
    def compare(self, pair: int, student: Feature, teacher: Feature) -> Tensor:
        s, t = match_maps(student, teacher)
        weight = 0.5 ** (len(self.connectors) - 1 - pair)
        return weight * activation_boundaries(self.connectors[pair](s), t, margin=self.margin)

    @override
    def extra_repr(self) -> str:
        return f"margin={self.margin}"


def _connector(inputs: int, outputs: int, axes: int) -> nn.Module:
    """1x1 convolution and BatchNorm, or nothing where the channels are as many."""
    if inputs == outputs:
        return nn.Identity()
    layer = convolution(inputs, outputs, axes)
    nn.init.kaiming_normal_(layer.get_parameter("weight"), mode="fan_out")
    return nn.Sequential(layer, BatchNorm(outputs))
