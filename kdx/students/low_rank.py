"""Students whose layers are products of two thin ones."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx.errors import StudentError
from kdx.students.calls import record_calls
from kdx.students.derivation import Derivation
from kdx.students.edit import Edit, Kept, Origin, Plan
from kdx.students.factors import convolution, is_tied, layer_at, lost, own_code, replace_layer

__all__ = ["ByLowRank", "LowRank", "plan_low_rank"]

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
FINEST = 128
LEAST = 8
"""The least rank that is planned: one below is a bottleneck for everything behind it (a classifier of rank 1, say)."""


class LowRank(Edit):
    """Factorises linear layers and convolutions by a truncated singular value decomposition.

    A layer of weight ``W [O, I]`` becomes ``down [r, I]`` and ``up [O, r]`` under its name, the best product of rank
    ``r`` in the least squares (Eckart and Young 1936; for nets Denton et al. 2014, https://arxiv.org/abs/1404.0736),
    the singular values shared equally. A convolution with a larger window is read as ``[O, I * window]``: ``down`` has
    the window, ``up`` is 1x1 (Zhang et al. 2016, https://arxiv.org/abs/1505.06798).

    Args:
        ranks: layer -> its rank.
    """

    how: Literal["low-rank"] = "low-rank"
    ranks: dict[str, int]

    def build(self, model: nn.Module) -> None:
        """See :meth:`Edit.build`."""
        self._replace(model, copy=False)

    def derive(self, model: nn.Module, inputs: Any) -> dict[str, Origin]:
        """See :meth:`Edit.derive`."""
        return self._replace(model, copy=True)

    def _replace(self, model: nn.Module, *, copy: bool) -> dict[str, Origin]:
        origins: dict[str, Origin] = {}
        for name, rank in self.ranks.items():
            layer = layer_at(model, name, _LAYERS)
            assert isinstance(layer, _LAYERS)
            weight, bias = layer.weight, layer.bias is not None
            if not 1 <= rank <= (largest := _full_rank(weight)):
                raise StudentError(f"rank of {name!r} must lie between 1 and {largest}; got {rank}")
            if isinstance(layer, nn.Linear):
                where: Any = {"device": weight.device, "dtype": weight.dtype}
                down: nn.Module = nn.Linear(layer.in_features, rank, bias=False, **where)
                up: nn.Module = nn.Linear(rank, layer.out_features, bias=bias, **where)
            else:
                down = convolution(layer, layer.in_channels, rank, kernel=True)
                up = convolution(layer, rank, layer.out_channels, kernel=False, bias=bias)
            pair = {"down": down, "up": up}
            origins |= replace_layer(model, name, pair, _factors(weight.detach(), rank) if copy else None)
        return origins


class ByLowRank(Derivation):
    """Layers that are products of two thin ones, see :class:`LowRank`.

    Paper: Denton et al., Exploiting Linear Structure Within Convolutional Networks, 2014,
    https://arxiv.org/abs/1404.0736.
    """

    edit = LowRank

    @override
    def plan(self, model: nn.Module, inputs: Any) -> Plan:
        return plan_low_rank(model, inputs)


def plan_low_rank(model: nn.Module, inputs: Any) -> Plan:
    """Ranks as shares of each layer's full rank, at most 128, each at least 8.

    A layer that its rank would not make smaller stays.
    """
    tied = is_tied(model)
    inside = {f"{name}.out_proj" for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)}
    modules = dict(model.named_modules())
    calls = record_calls(model, inputs)
    layers: dict[str, Tensor] = {}
    kept: list[Kept] = []
    for name, module in modules.items():
        what = f"{name} ({type(module).__name__})"
        if isinstance(module, nn.MultiheadAttention):
            kept.append(Kept(what, "it reads its weights as tensors, not through layers that could be replaced"))
        if not isinstance(module, _LAYERS) or name not in calls or name in inside or _is_grouped(module):
            continue
        if reason := own_code(module, _LAYERS):
            kept.append(Kept(what, reason))
        elif id(module.weight) in tied:
            kept.append(Kept(what, "its weight is shared with another module"))
        else:
            layers[name] = module.weight

    def ranks(share: float) -> dict[str, int]:
        chosen = {name: max(LEAST, round(share * _full_rank(weight))) for name, weight in layers.items()}
        return {name: rank for name, rank in chosen.items() if _saves(layers[name], rank)}

    widest = max((_full_rank(weight) for weight in layers.values()), default=1)
    steps = min(widest, FINEST)
    different: list[dict[str, int]] = []
    for place in range(steps):
        if (found := ranks((place + 1) / steps)) and found not in different:
            different.append(found)
    if not different and not kept:
        kept.append(Kept(type(model).__name__, "no linear layer or convolution is large enough to gain from two"))
    return Plan(len(different) + 1, lambda place: LowRank(ranks=[*different, {}][place]), kept)


def _is_grouped(module: nn.Module) -> bool:
    return getattr(module, "groups", 1) != 1


def _full_rank(weight: Tensor) -> int:
    return min(weight.shape[0], weight[0].numel())


def _saves(weight: Tensor, rank: int) -> bool:
    return rank * (weight.shape[0] + weight[0].numel()) < weight.numel()


def _factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """``[O, I, *K]`` -> down ``[r, I, *K]``, up ``[O, r, 1..]`` and what they lose."""
    left, values, right = torch.linalg.svd(weight.double().flatten(1), full_matrices=False)
    root = values[:rank].sqrt()
    down = (root[:, None] * right[:rank]).reshape(rank, *weight.shape[1:])
    up = (left[:, :rank] * root).reshape(weight.shape[0], rank, *[1] * (weight.dim() - 2))
    return down, up, lost(values, rank)
