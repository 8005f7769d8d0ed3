"""Correlation congruence: a kernel between samples, as a Taylor series."""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor
from typing_extensions import override

from kdx.capture import LOGITS
from kdx.features.feature import Feature
from kdx.features.matching import Strategy
from kdx.features.operands import Variant, check_choice, check_same_rows, check_same_shape, in_full_precision
from kdx.knowledge.relation import Relation, unit_rows
from kdx.ranges import check_number, check_whole
from kdx.tap import TapNames, TapOptions

__all__ = ["CC", "cc"]


@in_full_precision
def cc(student: Tensor, teacher: Tensor, *, gamma: float = 0.4, order: int = 2, variant: Variant = "paper") -> Tensor:
    """Congruence of two features ``[N, ...]``, a scalar, 0 for an empty batch; see :class:`CC`.

    Raises:
        ValueError: batches that differ, and for ``"code"`` widths that do.
    """
    check_same_rows(student, teacher)
    check_choice("variant", variant, ("paper", "code"))
    if variant == "code":
        check_same_shape(student, teacher)
        gap = (student - teacher).flatten(1).abs()
        return (gap[:-1] * gap[1:]).sum() / max(1, len(gap) - 1)
    difference = _kernel(student, gamma, order) - _kernel(teacher, gamma, order)  # [N, N]
    return (difference * difference).sum() / max(1, difference.numel())


def _kernel(feature: Tensor, gamma: float, order: int) -> Tensor:
    """``exp(-gamma |x - y|^2)`` of unit vectors, its series in ``2 gamma <x, y>`` cut after the given order."""
    rows = unit_rows(feature.flatten(1))
    product = 2 * gamma * (rows @ rows.T)
    series = torch.ones_like(product)
    for power in range(order, 0, -1):
        series = 1 + product * series / power
    return math.exp(-2 * gamma) * series


class CC(Relation):
    """Squared difference between the kernel matrices of a batch in student and teacher.

    Loss: ``mean_ij (K_s - K_t)_ij^2``, where ``K`` is the Gaussian kernel ``exp(-gamma |x - y|^2)`` of features scaled
    to length 1, ``exp(-2 gamma) sum_{p <= order} (2 gamma <x, y>)^p / p!``; summed over the pairs of layers. That is
    ``variant="paper"``. ``"code"`` is what the authors handed to the RepDistiller benchmark, another loss:
    ``sum_d |d_i| |d_{i+1}|`` of the differences ``d = f_s - f_t`` of neighbours in the batch, averaged over N - 1; it
    needs equal widths and depends on the order of the batch. No ``T^2``. Gradients reach both sides; the paper's form
    does not change when a feature is rotated, nor with the length of any sample's feature.

    The paper adds this to soft targets: ``a CE + (1 - a) KD + b CC``.

    Memory: at most eleven ``N x N`` matrices in float32 beside the features and their unit vectors, backward included.

    Args:
        gamma: of the kernel, > 0.
        order: highest power kept, >= 1; 2 beside a gamma of .4 is the usual choice.
        variant: ``"paper"`` or ``"code"`` (common weight .02), see above.
        student: tap or taps ``[N, ...]``; any width.
        teacher: tap or taps; any width.
        pairing: which student layer learns from which teacher layer, see :data:`kdx.features.Strategy`.
        seed: for ``pairing="random"``.
        **features: see :class:`kdx.tap.TapOptions`.

    Paper: Peng et al., Correlation Congruence for Knowledge Distillation, ICCV 2019, https://arxiv.org/abs/1904.01802.

    Example:
        >>> import torch
        >>> from kdx.capture import Captured
        >>> s, t = Captured({"logits": torch.eye(2)}), Captured({"logits": torch.ones(2, 3)})
        >>> round(CC()(s, t, None).item(), 4)  # off the diagonal exp(-.8) against exp(-.8) (1 + .8 + .32)
        0.1266
    """

    def __init__(
        self,
        *,
        gamma: float = 0.4,
        order: int = 2,
        variant: Variant = "paper",
        student: TapNames = LOGITS,
        teacher: TapNames = LOGITS,
        pairing: Strategy = "explicit",
        seed: int = 0,
        **features: Unpack[TapOptions],
    ) -> None:
        super().__init__(student=student, teacher=teacher, pairing=pairing, seed=seed, **features)
        self.gamma = check_number("gamma", gamma, above=0)
        self.order = check_whole("order", order, least=1, instead="at order 0 every kernel is the same constant")
        check_choice("variant", variant, ("paper", "code"))
        self.variant = variant

    @override
    def rows(self, feature: Feature) -> Tensor:  # the authors' form compares numbers at the same place
        return super().rows(feature) if self.variant == "paper" else feature.channels_first().flatten(1)

    @override
    def relation(self, student: Tensor, teacher: Tensor) -> Tensor:
        return cc(student, teacher, gamma=self.gamma, order=self.order, variant=self.variant)

    @override
    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, order={self.order}, variant={self.variant!r}"
