"""A sub-network that runs on the weights of the whole model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kdx_search.kernel import centre
from kdx_search.space import Choice, Space

__all__ = ["SubNetwork", "cuts"]

Cut = Callable[[Tensor], Tensor]


class SubNetwork(nn.Module):
    """A sub-network that shares the weights of the whole model: a step on it moves the whole, and the other way round.

    Its parameters are those of the whole model; each pass cuts out what it needs, as views where the channels lie side
    by side, so that gradients reach the shared weights. It follows the modes of the whole model, module by module. Its
    buffers, the running statistics of norms among them, are its own, as those of the whole model are averages over
    other channels: fill them with :func:`kdx_search.recalibrate` before it is evaluated.

    Args:
        space: which sub-networks there are.
        choice: which one this is.
        shared: the whole model, the space's own by default; another one must be built the same.

    Example:
        >>> import kdx
        >>> whole = kdx.make("model", "convnet", width=8, stages=2)
        >>> part = SubNetwork(Space.of(whole, torch.zeros(2, 1, 28, 28)), {"width:stage1.conv1": 2})
        >>> part(torch.zeros(2, 1, 28, 28)).sum().backward()
        >>> whole.stage1.conv1.weight.grad.flatten(1).any(1).sum() <= 2
        tensor(True)
    """

    def __init__(self, space: Space, choice: Choice, shared: nn.Module | None = None) -> None:
        super().__init__()
        self.shared = space.model if shared is None else shared
        self.choice = space.check(choice)
        self._cuts = cuts(space, choice)
        structure = space.structure(choice)
        tensors = dict(self.shared.named_buffers())
        for name, _ in list(structure.named_buffers()):
            path, _, own = name.rpartition(".")
            setattr(structure.get_submodule(path), own, self._cut(name, tensors[name].detach()).clone())
        modules = dict(self.shared.named_modules())
        self._parameters_used = [name for name, _ in structure.named_parameters()]
        self._modes = [(module, modules[name]) for name, module in structure.named_modules()]
        self._held = (structure,)  # in a tuple, so that its empty parameters are not taken for this module's

    @property
    def structure(self) -> nn.Module:
        """The sub-network as modules: with its own buffers, and with parameters that hold nothing."""
        return self._held[0]

    def weights(self) -> dict[str, Tensor]:
        """The parameters as cut out of the whole model, with their graph, under the sub-network's names."""
        shared = dict(self.shared.named_parameters(remove_duplicate=False))
        return {name: self._cut(name, shared[name]) for name in self._parameters_used}

    def extract(self) -> nn.Module:
        """A model of its own: the same structure with copies of the weights and buffers, to be trained apart."""
        found = copy.deepcopy(self.structure)
        weights = self.weights()
        names: dict[int, list[str]] = {}
        for name, empty in found.named_parameters(remove_duplicate=False):
            names.setdefault(id(empty), []).append(name)
        empties = {id(empty): empty for empty in found.parameters()}
        for key, tied in names.items():
            own = nn.Parameter(weights[tied[0]].detach().clone(), requires_grad=empties[key].requires_grad)
            for name in tied:
                setattr(found.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], own)
        for module, (_, whole) in zip(found.modules(), self._modes, strict=True):
            module.training = whole.training
        return found

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the sub-network, of the same form as that of the whole model."""
        return self.run("", *args, **kwargs)

    def run(self, module: str, *args: Any, **kwargs: Any) -> Any:
        """The output of one of its modules alone.

        Args:
            module: name of the module, empty for the whole sub-network.
            *args: what the module takes.
            **kwargs: likewise.
        """
        for own, whole in self._modes:
            own.training = whole.training
        shared = dict(self.shared.named_parameters(remove_duplicate=False))
        path = f"{module}." if module else ""
        used = [name for name in self._parameters_used if name.startswith(path)]
        weights = {name.removeprefix(path): self._cut(name, shared[name]) for name in used}
        return functional_call(self.structure.get_submodule(module), weights, args, kwargs)

    def _cut(self, name: str, tensor: Tensor) -> Tensor:
        for cut in self._cuts.get(name, ()):
            tensor = cut(tensor)
        return tensor


def cuts(space: Space, choice: Choice) -> dict[str, list[Cut]]:
    """How the weights of a sub-network are cut out of the whole: name -> cuts, one after another."""
    found: dict[str, list[Cut]] = {}
    for name, along in space.narrowing.kept_indices(space.stay(choice)).items():
        found[name] = [_along(dim, torch.as_tensor(index)) for dim, index in along.items()]
    for name, size in space.windows(choice).items():
        found.setdefault(f"{name}.weight", []).append(lambda weight, size=size: centre(weight, size))  # type: ignore[misc]
    return found


def _along(dim: int, index: Tensor) -> Cut:
    if bool((index == torch.arange(len(index))).all()):
        return lambda tensor: tensor.narrow(dim, 0, len(index))
    return lambda tensor: tensor.index_select(dim, index.to(tensor.device))
