"""Students whose convolutions are depth-wise separable."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx.students.calls import record_calls
from kdx.students.derivation import Derivation
from kdx.students.edit import Edit, Kept, Origin, Plan
from kdx.students.factors import Conv, convolution, is_tied, layer_at, lost, own_code, replace_layer

__all__ = ["ByDepthwise", "Depthwise", "plan_depthwise"]

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Depthwise(Edit):
    """Replaces convolutions by one of every channel by itself and a 1x1 one across channels.

    The pair, ``depthwise`` and ``pointwise``, stands under the name of the convolution (MobileNet, Howard et al. 2017,
    https://arxiv.org/abs/1704.04861; without a norm or activation in between, as Xception found best, Chollet 2017,
    https://arxiv.org/abs/1610.02357). Its weights are the nearest to the teacher's in the least squares: for every
    input channel the filters' best rank-one approximation ``W[o, c] = pointwise[o, c] * depthwise[c]`` (Guo et al.
    2018, https://arxiv.org/abs/1808.05517). The first convolution stays, as in MobileNet: it has too few input
    channels to gain from it.

    Args:
        layers: names of the convolutions.
    """

    how: Literal["depthwise"] = "depthwise"
    layers: list[str]

    def build(self, model: nn.Module) -> None:
        """See :meth:`Edit.build`."""
        self._replace(model, copy=False)

    def derive(self, model: nn.Module, inputs: Any) -> dict[str, Origin]:
        """See :meth:`Edit.derive`."""
        return self._replace(model, copy=True)

    def _replace(self, model: nn.Module, *, copy: bool) -> dict[str, Origin]:
        origins: dict[str, Origin] = {}
        for name in self.layers:
            old = cast("Conv", layer_at(model, name, _CONV))
            pair: dict[str, nn.Module] = {
                "depthwise": convolution(old, old.in_channels, old.in_channels, kernel=True, groups=old.in_channels),
                "pointwise": convolution(
                    old, old.in_channels, old.out_channels, kernel=False, bias=old.bias is not None
                ),
            }
            origins |= replace_layer(model, name, pair, _rank_one(old.weight.detach()) if copy else None)
        return origins


class ByDepthwise(Derivation):
    """Depth-wise separable convolutions, see :class:`Depthwise`; without a budget all that can be replaced.

    Paper: Howard et al., MobileNets, 2017, https://arxiv.org/abs/1704.04861.
    """

    edit = Depthwise
    needs_budget = False

    @override
    def plan(self, model: nn.Module, inputs: Any) -> Plan:
        return plan_depthwise(model, inputs)


def plan_depthwise(model: nn.Module, inputs: Any) -> Plan:
    """The convolutions that can be replaced, all of them or only those that save most."""
    tied = is_tied(model)
    modules = dict(model.named_modules())
    convolutions = [(name, modules[name]) for name in record_calls(model, inputs) if isinstance(modules[name], _CONV)]
    found: list[tuple[int, str]] = []
    kept: list[Kept] = []
    for place, (name, layer) in enumerate(convolutions):
        weight = layer.weight
        window = weight[0, 0].numel()
        if window == 1 or layer.groups != 1:
            continue  # nothing to separate
        if place == 0:
            kept.append(Kept(f"{name} ({type(layer).__name__})", "the first convolution stays, as in MobileNet"))
        elif reason := own_code(layer, _CONV):
            kept.append(Kept(f"{name} ({type(layer).__name__})", reason))
        elif id(weight) in tied:
            kept.append(Kept(f"{name} ({type(layer).__name__})", "its weight is shared with another module"))
        else:
            found.append((weight.numel() - layer.in_channels * (window + layer.out_channels), name))
    order = [name for _saved, name in sorted(found, key=lambda item: -item[0])]
    if not order and not kept:
        kept.append(Kept(type(model).__name__, "it has no convolution with a window larger than 1 over all channels"))

    def edit(place: int) -> Depthwise:
        chosen = set(order[: len(order) - place])
        return Depthwise(layers=[name for name, _ in convolutions if name in chosen])

    return Plan(len(order) + 1, edit, kept)


def _rank_one(weight: Tensor) -> tuple[Tensor, Tensor, float]:
    """``[O, C, *K]`` -> depth-wise ``[C, 1, *K]``, pointwise ``[O, C, 1..]`` and what they lose."""
    filters = weight.double().flatten(2).transpose(0, 1)  # [C, O, K]
    left, values, right = torch.linalg.svd(filters, full_matrices=False)
    root = values[:, :1].sqrt()  # [C, 1]
    window = weight.shape[2:]
    depthwise = (root * right[:, 0]).reshape(-1, 1, *window)
    pointwise = (root * left[:, :, 0]).T.reshape(*weight.shape[:2], *[1] * len(window))
    return depthwise, pointwise, lost(values, 1)
