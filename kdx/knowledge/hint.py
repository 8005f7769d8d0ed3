"""Hints: a student layer regresses a teacher layer through a learned adapter (FitNets)."""

from __future__ import annotations

from typing import Unpack, get_args

from torch import Tensor, nn
from typing_extensions import override

from kdx.features.adapters import match, project
from kdx.features.feature import Feature
from kdx.features.matching import Strategy
from kdx.features.operands import Variant, check_choice, check_same_shape, in_full_precision
from kdx.knowledge.paired import PairedLayers
from kdx.tap import TapNames, TapOptions

__all__ = ["Hint", "hint"]


@in_full_precision
def hint(student: Tensor, teacher: Tensor, *, variant: Variant = "code") -> Tensor:
    """Squared error between an adapted student feature and a teacher feature.

    Args:
        student: ``[N, ...]``, any float dtype; computed in float32 (float64 stays).
        teacher: of the same shape.
        variant: ``"paper"``: ``1/2 ||s - t||^2``, summed over a sample's elements, averaged over the batch;
            ``"code"``: ``mean((s - t)^2)`` over all elements.

    Returns:
        A scalar, with gradients to both.

    Example:
        >>> import torch
        >>> hint(torch.zeros(2, 4), torch.ones(2, 4), variant="paper").item()
        2.0
    """
    check_same_shape(student, teacher)
    square = (student - teacher).square()
    return square.mean() if variant == "code" else 0.5 * square.sum() / square.shape[0]


class Hint(PairedLayers):
    """Squared error between adapted student features and teacher features: hint learning of FitNets.

    Loss: ``mean((r(F_s) - F_t)^2)`` (``variant="code"``) or ``1/2 ||r(F_s) - F_t||^2`` averaged over the batch
    (``variant="paper"``), summed over pairs of layers; no ``T^2``. ``r`` is a convolution with kernel 1 over the
    channels of maps ``[N, C, H, W]``, video, series ``[N, C, L]`` and tokens, or a linear layer for vectors ``[N, C]``,
    learned with the student; sizes are matched by :func:`kdx.features.match`. Gradients reach the student and the
    adapters.

    The paper trains in two stages: first only the layers up to the guided one, on the hint alone, then the whole
    student by knowledge distillation. The first stage is the scheme ``hint-stage``, followed by ``offline`` on the same
    student. Beside other terms this component is the common one-stage variant, with weight 100 in the usual CIFAR-100
    recipe.

    Args:
        student: taps of the guided layers.
        teacher: taps of the hint layers.
        pairing: see :data:`kdx.features.Strategy`.
        variant: ``"paper"`` or ``"code"``, the mean that benchmark code uses.
        seed: for ``pairing="random"``.
        **features: see :class:`kdx.tap.TapOptions`.

    Paper: Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, https://arxiv.org/abs/1412.6550. Its regressor
    is a convolution without padding that reduces the student's map to the teacher's size; here it is a 1x1
    convolution after pooling.

    Example:
        >>> import torch
        >>> from kdx.capture import Captured
        >>> hint = Hint(student="conv", teacher="conv")
        >>> s, t = Captured({"conv": torch.zeros(2, 4, 8, 8)}), Captured({"conv": torch.ones(2, 6, 4, 4)})
        >>> hint.setup(s, t)
        >>> hint.adapters[0].weight.shape
        torch.Size([6, 4, 1, 1])
    """

    builds = True

    def __init__(
        self,
        *,
        student: TapNames,
        teacher: TapNames,
        pairing: Strategy = "explicit",
        variant: Variant = "code",
        seed: int = 0,
        **features: Unpack[TapOptions],
    ) -> None:
        super().__init__(student=student, teacher=teacher, pairing=pairing, seed=seed, **features)
        check_choice("variant", variant, get_args(Variant))
        self.variant: Variant = variant
        self.adapters = nn.ModuleList()

    @override
    def build(self, pairs: list[tuple[Feature, Feature]]) -> None:
        self.adapters.extend(project(student, teacher) for student, teacher in pairs)

    @override
    def compare(self, pair: int, student: Feature, teacher: Feature) -> Tensor:
        source, target = match(student, teacher)
        return hint(self.adapters[pair](source), target, variant=self.variant)
