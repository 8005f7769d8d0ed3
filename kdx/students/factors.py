"""Putting two layers in the place of one."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from kdx.errors import StudentError
from kdx.students.edit import Origin

__all__ = ["Conv", "convolution", "is_tied", "layer_at", "lost", "own_code", "replace_layer"]

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d


def convolution(like: Conv, taken: int, made: int, *, kernel: bool, groups: int = 1, bias: bool = False) -> Conv:
    """A convolution of the same dimensions, device and dtype; with ``kernel`` also of the same window, else 1x1."""
    window: dict[str, Any] = {"kernel_size": 1}
    if kernel:
        names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        window = {name: getattr(like, name) for name in names}
    where: dict[str, Any] = {"device": like.weight.device, "dtype": like.weight.dtype}
    kind: Any = type(like)
    made_of: Conv = kind(taken, made, **window, groups=groups, bias=bias, **where)
    return made_of


def layer_at(model: nn.Module, name: str, kinds: tuple[type[nn.Module], ...]) -> nn.Module:
    """The layer of this name.

    Raises:
        StudentError: there is none, or it is of another kind.
    """
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        layer = None
    if not isinstance(layer, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        found = "none" if layer is None else type(layer).__name__
        raise StudentError(f"{type(model).__name__} must have a {wanted} at {name!r}; there is {found}")
    return layer


def own_code(layer: nn.Module, kinds: tuple[type[nn.Module], ...]) -> str | None:
    """Why a layer of a class derived from ``kinds`` stays: two plain layers would not do what its code does."""
    if type(layer) in kinds:
        return None
    kind = next(kind for kind in kinds if isinstance(layer, kind))
    return f"a class derived from {kind.__name__}, whose code two plain layers would not run"


def is_tied(model: nn.Module) -> set[int]:
    """Ids of the parameters that several modules share."""
    seen: set[int] = set()
    return {
        id(one)
        for module in model.modules()
        for one in module.parameters(recurse=False)
        if id(one) in seen or seen.add(id(one))  # type: ignore[func-returns-value]  # add gives None
    }


def replace_layer(
    model: nn.Module, name: str, layers: dict[str, nn.Module], weights: tuple[Tensor, Tensor, float] | None
) -> dict[str, Origin]:
    """Puts two layers, named, in the place of one, the bias going to the second.

    Args:
        model: changed in place.
        name: of the layer.
        layers: the two by name.
        weights: of the two, and what of the old one they lose; None leaves those they have.

    Returns:
        Name -> origin of the two weights and the bias, if weights were given.
    """
    path, _, own = name.rpartition(".")
    parent = model.get_submodule(path)
    old: Any = getattr(parent, own)
    first, second = list[Any](layers.values())
    before = tuple(old.weight.shape)
    origins: dict[str, Origin] = {}
    if weights is not None:
        with torch.no_grad():
            first.weight.copy_(weights[0])
            second.weight.copy_(weights[1])
            if old.bias is not None:
                second.bias.copy_(old.bias)
        for key, layer in zip(layers, (first, second), strict=True):
            origins[f"{name}.{key}.weight"] = Origin("factorised", tuple(layer.weight.shape), before, weights[2])
        if old.bias is not None:
            shape = tuple(old.bias.shape)
            origins[f"{name}.{list(layers)[1]}.bias"] = Origin("copied", shape, shape)
    for layer in layers.values():
        for parameter in layer.parameters():
            parameter.requires_grad_(old.weight.requires_grad)
        layer.train(old.training)
    setattr(parent, own, nn.Sequential(OrderedDict(layers)).train(old.training))
    _leave_fused_path(model, path, parent)
    return origins


def _leave_fused_path(model: nn.Module, path: str, parent: nn.Module) -> None:
    """Makes a transformer layer run its modules; in evaluation it would read the weight of the layer that is gone."""
    if isinstance(parent, nn.TransformerEncoderLayer):
        parent.activation_relu_or_gelu = 0
        for above in model.modules():
            if isinstance(above, nn.TransformerEncoder) and any(parent is layer for layer in above.layers):
                above.use_nested_tensor = False


def lost(values: Tensor, keep: int) -> float:
    """Share of the Frobenius norm in all but the first ``keep`` singular values along the last dimension."""
    return float(values[..., keep:].norm() / values.norm().clamp_min(torch.finfo(values.dtype).tiny))
