"""Layers of which some weights are 0 and stay 0."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from kdx.errors import StudentError

__all__ = ["MASKED", "MaskedConv1d", "MaskedConv2d", "MaskedConv3d", "MaskedLinear", "mask_layer", "n_of_m", "plain"]

Layer: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


class _Masked(nn.Module):
    """Multiplies its weight by a mask, a buffer of its shape, whenever it computes or is saved.

    A masked weight gets no gradient, and as it begins at 0 it stays 0 under every optimizer that treats weights one by
    one, whatever momentum or weight decay; so the parameter itself is sparse. One that mixes the entries of a matrix
    (Muon) may move it; the outputs and what is saved do not change by that.
    """

    mask: Tensor
    weight: Tensor

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.weight.detach()[~self.mask].any():
            destination[prefix + "weight"] = self.weight.detach() * self.mask


class MaskedLinear(_Masked, nn.Linear):
    """A linear layer of which some weights are 0 and stay 0; ``mask`` is bool ``[out, in]``."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Linear``, with the masked weight."""
        return F.linear(input, self.weight * self.mask, self.bias)


class MaskedConv1d(_Masked, nn.Conv1d):
    """A convolution of which some weights are 0 and stay 0; ``mask`` is bool, of the weight's shape."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Conv1d``, with the masked weight."""
        weight = self.weight * self.mask
        return F.conv1d(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class MaskedConv2d(_Masked, nn.Conv2d):
    """A convolution of which some weights are 0 and stay 0; ``mask`` is bool, of the weight's shape."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Conv2d``, with the masked weight."""
        weight = self.weight * self.mask
        return F.conv2d(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class MaskedConv3d(_Masked, nn.Conv3d):
    """A convolution of which some weights are 0 and stay 0; ``mask`` is bool, of the weight's shape."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Conv3d``, with the masked weight."""
        weight = self.weight * self.mask
        return F.conv3d(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


MASKED: dict[type[nn.Module], type[_Masked]] = {
    nn.Linear: MaskedLinear,
    nn.Conv1d: MaskedConv1d,
    nn.Conv2d: MaskedConv2d,
    nn.Conv3d: MaskedConv3d,
}
"""Class of a layer -> the one that masks it."""


def n_of_m(weight: Tensor, n: int, m: int) -> Tensor:
    """The mask that keeps the ``n`` largest magnitudes of every ``m`` neighbours along the input channels.

    Args:
        weight: ``[out, in, ...]``; ``in`` is a multiple of ``m``. Every position of a window has groups of its own.
        n: entries kept, the first of equal ones.
        m: neighbours.

    Returns:
        Bool, of the weight's shape.

    Paper: Mishra et al., Accelerating Sparse Deep Neural Networks, 2021, https://arxiv.org/abs/2104.08378.

    Example:
        >>> n_of_m(torch.tensor([[3.0, -4.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0]]), 2, 4).int().tolist()
        [[1, 1, 0, 0, 1, 1, 0, 0]]
    """
    moved = weight.detach().abs().movedim(1, -1)  # [out, ..., in]
    groups = moved.reshape(-1, m)
    kept = groups.sort(dim=1, descending=True, stable=True).indices[:, :n]
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, kept, True)
    return mask.reshape(moved.shape).movedim(-1, 1).contiguous()


def mask_layer(model: nn.Module, name: str, n: int, m: int) -> tuple[nn.Module, float]:
    """Puts a masked layer in the place of one; its own weight is cut to ``n`` of ``m``.

    Args:
        model: changed in place.
        name: of a linear layer or a convolution in it.
        n: see :func:`n_of_m`.
        m: see :func:`n_of_m`.

    Returns:
        The new layer, and the Frobenius norm of what is cut off over that of the weight.

    Raises:
        StudentError: there is no such layer, or its input channels are no multiple of ``m``.
    """
    try:
        old: Any = model.get_submodule(name)
    except AttributeError:
        old = None
    kind = MASKED.get(type(old))
    if kind is None:
        raise StudentError(
            f"{name!r} of {type(model).__name__} must be an nn.Linear or a convolution, got {type(old).__name__}; is "
            "the model built as it was when the student was planned?"
        )
    if getattr(old, "padding_mode", "zeros") != "zeros":
        raise StudentError(f"{name!r} pads with more than zeros ({old.padding_mode}), which no masked layer does")
    if old.weight.shape[1] % m:
        raise StudentError(f"{name!r}: {n} of {m} needs input channels in multiples of {m}, got {old.weight.shape[1]}")
    new: Any = _like(kind, old)
    new.weight, new.bias = old.weight, old.bias
    new.register_buffer("mask", n_of_m(old.weight, n, m))
    whole = old.weight.detach().double()
    lost = (whole * ~new.mask).norm() / whole.norm().clamp(min=1e-300)
    with torch.no_grad():
        new.weight.mul_(new.mask)
    new.train(old.training)
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, new)
    return new, lost.item()


def plain(model: nn.Module) -> nn.Module:
    """Puts ordinary layers with zeros in the place of masked ones, for runtimes that find the zeros themselves.

    Args:
        model: changed in place; modules keep their names and weights.

    Returns:
        The model.
    """
    kinds = {masked: kind for kind, masked in MASKED.items()}
    for name, old in [*model.named_modules()]:
        if type(old) in kinds:
            new: Any = _like(kinds[type(old)], old)
            new.weight, new.bias = nn.Parameter(old.weight.detach() * old.mask), old.bias
            new.train(old.training)
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, new)
    return model


def _like(kind: type[nn.Module], old: Any) -> nn.Module:
    """A layer of the shape of another one, without weights yet."""
    if isinstance(old, nn.Linear):
        return kind(old.in_features, old.out_features, bias=old.bias is not None, device="meta")
    return kind(
        old.in_channels,
        old.out_channels,
        old.kernel_size,
        old.stride,
        old.padding,
        old.dilation,
        old.groups,
        old.bias is not None,
        device="meta",
    )
