"""The rest of a network: what it does after one of its layers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from kdx.capture import call, clean_name, unwrap
from kdx.modes import evaluating

__all__ = ["Rest", "modules_before"]


class Entry(nn.Module):
    """Stands where the split layer was and gives the feature, whatever it is handed."""

    feature: Tensor | None = None

    @override
    def forward(self, *_: Any, **__: Any) -> Tensor | None:
        return self.feature


class Rest(nn.Module):
    """A copy of a network that begins behind a layer; modules before it are gone.

    Works where the modules before the layer are run one after the other, as the stages of a CNN are, so that each can
    be replaced by nothing. Learnable modules of the copy are initialised anew, as torch does it by default: what the
    model's own ``__init__`` did to them is not known.

    Args:
        model: the network; it is not changed.
        split: name of the layer.
        before: names of the modules that are done before the layer is and not used later (:func:`modules_before`).
    """

    def __init__(self, model: nn.Module, split: str, before: tuple[str, ...]) -> None:
        super().__init__()
        self.model = copy.deepcopy(unwrap(model))
        for name in before:
            self.model.set_submodule(name, nn.Identity())
        self.entry = Entry()
        self.model.set_submodule(split, self.entry)
        for module in self.model.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()

    def enter(self, feature: Tensor | None) -> None:
        """Sets what the next pass of :attr:`model` begins with; None afterwards, so that no graph is kept."""
        self.entry.feature = feature


def run_hooked(model: nn.Module, inputs: Any, handles: Sequence[RemovableHandle]) -> None:
    """Runs a model in evaluation mode without gradient, for the sake of hooks that are removed afterwards."""
    try:
        with evaluating(model), torch.no_grad():
            call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()


def modules_before(model: nn.Module, split: str, inputs: Any) -> tuple[str, ...]:
    """Names of the outermost modules that run before the layer ``split`` is done and never after it.

    Args:
        model: the network.
        split: name of the layer.
        inputs: one batch; the model is run once, in evaluation mode.
    """
    plain = unwrap(model)
    names = {module: clean_name(name) for name, module in plain.named_modules() if name}
    layer = plain.get_submodule(split)
    done, first, later = False, set[str](), set[str]()

    def begins(module: nn.Module, _: Any) -> None:
        (later if done else first).add(names[module])

    def ends(*_: Any) -> None:
        nonlocal done
        done = True

    handles = [module.register_forward_pre_hook(begins) for module in names]
    handles.append(layer.register_forward_hook(ends))
    run_hooked(model, inputs, handles)
    gone = {name for name in first - later if name != split and not f"{split}.".startswith(f"{name}.")}
    return tuple(sorted(name for name in gone if not any(name.startswith(f"{other}.") for other in {*gone, split})))
