"""Variational information distillation: the teacher's feature predicted from the student's by a Gaussian."""

from __future__ import annotations

import math
from typing import Unpack, get_args

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from kdx.features.adapters import channels, match, regressor
from kdx.features.feature import Feature
from kdx.features.matching import Strategy
from kdx.features.operands import Variant, check_choice, check_same_shape, in_full_precision
from kdx.knowledge.paired import PairedLayers
from kdx.ranges import check_number
from kdx.tap import TapNames, TapOptions

__all__ = ["VID", "vid"]

EPS = 1e-5
"""Smallest variance."""


@in_full_precision
def vid(mean: Tensor, teacher: Tensor, *, variance: Tensor, variant: Variant = "code") -> Tensor:
    """Negative log-likelihood of the teacher's feature under a Gaussian with one variance per channel.

    ``1/2 [(mean - teacher)^2 / variance_c + log variance_c]``, without the constant ``log(2 pi) / 2``.

    Args:
        mean: ``[N, C, ...]``, predicted from the student's feature.
        teacher: of the same shape.
        variance: ``[C]``, > 0.
        variant: ``"code"``: the mean over all elements; ``"paper"``: summed over a sample's elements, averaged over
            the batch.

    Returns:
        A scalar that can be negative, with gradients to all three.

    Example:
        >>> import torch
        >>> vid(torch.zeros(2, 3), torch.full((2, 3), 2.0), variance=torch.ones(3)).item()
        2.0
    """
    check_same_shape(mean, teacher)
    if variance.shape != mean.shape[1:2]:
        raise ValueError(
            f"variance: expected one value per channel of mean {list(mean.shape)}, channels first, got "
            f"{list(variance.shape)}; tokens are [N, C, L] here"
        )
    variance = variance.to(mean.dtype)[(..., *[None] * (mean.dim() - 2))]
    terms = 0.5 * ((mean - teacher).square() / variance + variance.log())
    return terms.mean() if variant == "code" else terms.sum() / terms.shape[0]


class VID(PairedLayers):
    """Negative log-likelihood of teacher features under a Gaussian predicted from the student, summed over pairs.

    Loss: ``1/2 [(mu_c(F_s) - F_t)^2 / var_c + log var_c]``, mean over all elements (``variant="code"``, weight 1 in the
    common CIFAR-100 recipe) or sum over a sample's elements (``variant="paper"``); no ``T^2``. ``mu`` is three
    convolutions with kernel 1 (linear layers for vectors) with ReLU between, ``var_c = softplus(a_c) + 1e-5`` starts
    at ``variance`` = 5. Gradients reach the student, ``mu`` and ``a``; with a fixed variance this would be a mere
    scaled mean squared error. Sizes are matched by :func:`kdx.features.match`. ``"code"`` is the authors' loss
    as the RepDistiller benchmark has it; ``"paper"`` is minus the log-likelihood of a sample's feature, ``sum_n log
    sigma_n + (t_n - mu_n)^2 / (2 sigma_n^2)``, which weighs a layer by its number of elements.

    Args:
        student: taps of maps ``[N, C, ...]``, tokens or vectors, from shallow to deep.
        teacher: taps.
        pairing: see :data:`kdx.features.Strategy`.
        variance: the variance at the start, > 1e-5.
        hidden: channels inside ``mu``; None takes the teacher's, as the code does.
        variant: ``"paper"`` or ``"code"``.
        seed: for ``pairing="random"``.
        **features: see :class:`kdx.tap.TapOptions`.

    Paper: Ahn et al., Variational Information Distillation for Knowledge Transfer, CVPR 2019,
    https://arxiv.org/abs/1904.05835.

    Example:
        >>> import torch
        >>> from kdx.capture import Captured
        >>> s, t = Captured({"conv": torch.zeros(2, 4, 8, 8)}), Captured({"conv": torch.zeros(2, 6, 8, 8)})
        >>> component = VID(student="conv", teacher="conv", variance=1.0)
        >>> component.setup(s, t)
        >>> round(component(s, t, None).item(), 4)
        0.0
    """

    builds = True

    def __init__(
        self,
        *,
        student: TapNames,
        teacher: TapNames,
        pairing: Strategy = "explicit",
        variance: float = 5.0,
        hidden: int | None = None,
        variant: Variant = "code",
        seed: int = 0,
        **features: Unpack[TapOptions],
    ) -> None:
        super().__init__(student=student, teacher=teacher, pairing=pairing, seed=seed, **features)
        check_choice("variant", variant, get_args(Variant))
        self.variance = check_number("variance", variance, above=EPS)
        self.hidden = hidden
        self.variant: Variant = variant
        self.means = nn.ModuleList()
        self.alphas = nn.ParameterList()

    @override
    def build(self, pairs: list[tuple[Feature, Feature]]) -> None:
        start = math.log(math.expm1(self.variance - EPS))
        for student, teacher in pairs:
            mean = regressor(student, teacher, self.hidden or channels(teacher))
            self.means.append(mean)
            alpha = next(mean.parameters()).new_full((channels(teacher),), start)
            self.alphas.append(nn.Parameter(alpha))

    def variance_of(self, pair: int) -> Tensor:
        """The variance ``[C]`` of a pair as it is now."""
        return F.softplus(self.alphas[pair]) + EPS

    @override
    def compare(self, pair: int, student: Feature, teacher: Feature) -> Tensor:
        source, target = match(student, teacher)
        return vid(self.means[pair](source), target, variance=self.variance_of(pair), variant=self.variant)
