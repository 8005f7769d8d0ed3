"""Gates on the channels of a network: what the network does with each, and how the loss depends on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

__all__ = ["Gates", "Place", "evaluating", "run"]

Place: TypeAlias = tuple[str, int]
"""A dimension of a weight: the weight's name and the number of the dimension."""
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_PRODUCTS = ("matmul", "__matmul__", "mm", "bmm")


class Gates(TorchFunctionMode):
    """Multiplies channels by gates of value 1 wherever a weight reads or makes them, for one pass over a batch.

    The derivative of a loss by the gate where a weight reads a channel is the first-order change when that channel is
    taken away from it, whatever norms and activations lie between (Molchanov et al. 2019,
    https://arxiv.org/abs/1906.10771). Every row of the batch has gates of its own, so that derivatives come row by row;
    where no dimension of an input is that of the batch, its rows share one gate, and their derivative is spread evenly.

    Args:
        model: the network, whose weights are recognised by identity.
        rows: number of rows ``N`` of the batch.
        gated: whether gates are put in; otherwise only the activations are recorded.

    Attributes:
        gates: place -> the gates put in there, ``[N, C]`` or ``[1, C]``, one for each time the weight was used.
        activations: place -> mean absolute value of each channel there, over all positions, ``[N, C]``.
        read: the places at which a weight reads channels; at the others it makes them.
    """

    def __init__(self, model: nn.Module, rows: int, *, gated: bool = True) -> None:
        super().__init__()
        self.rows = rows
        self.gated = gated
        self.gates: dict[Place, list[Tensor]] = {}
        self.activations: dict[Place, Tensor] = {}
        self.read: set[Place] = set()
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls the function on gated inputs, and gates what it makes."""
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "multi_head_attention_forward" and len(args) > 5 and id(args[5]) in self._names:
            place, tokens = (self._names[id(args[5])], 1), args[:3]
            self.read.add(place)
            distinct = {id(one): one for one in tokens}
            gated = {key: self._gate(one, -1, place, record=one is tokens[0]) for key, one in distinct.items()}
            return func(*(gated[id(one)] for one in tokens), *args[3:], **kwargs)
        given = [*args[:2], *(kwargs[key] for key in ("input", "weight", "other") if key in kwargs)]
        if len(given) < 2 or id(given[1]) not in self._names or not isinstance(given[0], Tensor):
            return func(*args, **kwargs)
        weight, own = self._names[id(given[1])], given[1]
        if name == "linear" or (name in _PRODUCTS and own.dim() == 2):
            reads, makes, axis = (1, 0, -1) if name == "linear" else (0, 1, -1)
        elif name in _CONVOLUTIONS and given[0].dim() == own.dim():
            reads, makes, axis = 1, 0, 1
        else:
            return func(*args, **kwargs)
        if given[0].shape[axis] == own.shape[reads]:  # not the filters of groups, which read some channels each
            self.read.add((weight, reads))
            args, kwargs = _replaced(args, kwargs, self._gate(given[0], axis, (weight, reads)))
        return self._gate(func(*args, **kwargs), axis, (weight, makes))

    def derivatives(self, scalar: Tensor) -> dict[Place, Tensor]:
        """The derivative of a sum over rows by every gate: place -> ``[N, C]``.

        Args:
            scalar: a sum over the rows of what depends on one row each, so that rows do not mix.
        """
        flat = [(place, gate) for place, gates in self.gates.items() for gate in gates]
        if not flat or not scalar.requires_grad:
            return {}
        found = torch.autograd.grad(scalar, [gate for _, gate in flat], allow_unused=True)
        total: dict[Place, Tensor] = {}
        for (place, gate), derivative in zip(flat, found, strict=True):
            one = torch.zeros_like(gate) if derivative is None else derivative
            one = (one / self.rows).expand(self.rows, -1) if len(one) == 1 else one
            total[place] = total[place] + one if place in total else one
        return total

    def _gate(self, tensor: Tensor, axis: int, place: Place, *, record: bool = True) -> Tensor:
        """The tensor with gates on its channels, which lie along ``axis``."""
        axis %= tensor.dim()
        if not tensor.is_floating_point() or axis == 0:
            return tensor
        if record:
            values = self._by_row(tensor.detach().abs(), axis)
            self.activations[place] = self.activations[place] + values if place in self.activations else values
        if not self.gated:
            return tensor
        along, share = self._rows_of(tensor, axis)
        gate = torch.ones(
            1 if along is None else self.rows,
            tensor.shape[axis],
            dtype=tensor.dtype,
            device=tensor.device,
            requires_grad=True,
        )
        self.gates.setdefault(place, []).append(gate)
        view = [1] * tensor.dim()
        view[axis] = tensor.shape[axis]
        if along is not None:
            view[along] = self.rows * share
        return tensor * gate.repeat_interleave(share, 0).reshape(view)

    def _by_row(self, tensor: Tensor, axis: int) -> Tensor:
        """The mean over all positions, ``[N, C]``."""
        along, _ = self._rows_of(tensor, axis)
        if along is None:
            return tensor.movedim(axis, -1).flatten(0, -2).mean(0).expand(self.rows, -1)
        moved = tensor.movedim((along, axis), (0, -1))
        return moved.reshape(self.rows, -1, moved.shape[-1]).mean(1)

    def _rows_of(self, tensor: Tensor, axis: int) -> tuple[int | None, int]:
        """The dimension of the rows, and how many entries along it belong to one; None if no dimension is theirs.

        Tokens of all rows may lie one after the other in the first dimension.
        """
        if (along := next((d for d, size in enumerate(tensor.shape) if d != axis and size == self.rows), None)) is None:
            split = tensor.shape[0] % self.rows == 0 and tensor.shape[0] > 0
            return (0, tensor.shape[0] // self.rows) if split else (None, 1)
        return along, 1


def _replaced(args: tuple[Any, ...], kwargs: dict[str, Any], first: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a function with another first one."""
    return ((first, *args[1:]), kwargs) if args else (args, {**kwargs, "input": first})


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with gradients; every module is back in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.enable_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def run(model: Callable[..., Any], inputs: Any) -> Any:
    """Calls a model on a tensor, a tuple of arguments or a mapping of keyword arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)
