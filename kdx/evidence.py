"""Evidence of the layouts of tensors: the types of the modules that give them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils.parametrize import type_before_parametrizations

from kdx.layout import Axes, Layout, UnknownLayout

__all__ = ["Evidence"]

CHANNELS_FIRST: dict[int, Axes] = {3: "ncl", 4: "nchw", 5: "ncdhw"}
CHANNELS_LAST: dict[int, Axes] = {3: "nlc", 4: "nhwc", 5: "ndhwc"}

FIRST = {
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm, nn.LocalResponseNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.LPPool1d, nn.LPPool2d, nn.LPPool3d, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d),
    *(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, nn.PixelShuffle, nn.PixelUnshuffle),
}
"""Modules that take and give ``[N, C, ...]``."""

SPATIAL = {kind: int(kind.__name__[-2]) for kind in FIRST if kind.__name__.endswith("d")}
"""Number of axes after the channels; a tensor with one axis less is a sample without a batch."""

LAST = {nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RMSNorm, nn.Embedding}
"""Modules whose channels are the last axis; norms only if they work on that axis alone."""

SEQUENCES = {
    *(nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer),
    *(nn.TransformerEncoder, nn.TransformerDecoder, nn.Transformer, nn.RNN, nn.LSTM, nn.GRU),
}
"""Modules that give ``[N, L, C]`` or ``[L, N, C]``, as their ``batch_first`` says; the first item of a tuple."""

ELEMENTWISE = {
    *(nn.ReLU, nn.ReLU6, nn.RReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Sigmoid, nn.Tanh),
    *(nn.LogSigmoid, nn.Softplus, nn.Softsign, nn.Threshold, nn.Softmax, nn.LogSoftmax, nn.Identity),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
}
"""Modules that leave every axis what it is."""

DECLARED = "kdx_layout"
"""The attribute by which a module declares the :class:`kdx.layout.Layout` of what it gives, and of what modules inside
it give with the same axes and as many tokens."""


class Evidence:
    """The layouts that modules of a model say by their exact type, gathered in one forward pass.

    What a module of torch gives is certain by its type; a subclass may do anything and says nothing. Modules that work
    on every element by itself pass on what they were given. Of any other module, a residual block say, those certain
    modules speak that ran inside it and gave the same shape, and those that took in the very tensor it gave; all of
    them have to agree. No tensor is kept alive.

    Args:
        modules: name -> module of the model, the model itself as ``""``.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self._tensors: dict[int, tuple[weakref.ref[Tensor], Layout]] = {}
        self._takers: dict[int, list[tuple[weakref.ref[Tensor], Axes]]] = {}
        self._given: dict[int, list[tuple[torch.Size, Axes]]] = {}
        self._sequence_first = any(_sequence_first(module) for module in modules.values())

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Watches the modules that run; the hook is global, so that no module runs otherwise for being watched."""
        handle = register_module_forward_hook(self._note)
        try:
            yield
        finally:
            handle.remove()

    def layout_of(self, tensor: Tensor, name: str, *, entering: bool) -> Layout | UnknownLayout:
        """The layout of a tapped tensor of the pass.

        Args:
            tensor: the very tensor.
            name: of the tapped module.
            entering: it is what enters the module instead of what leaves it.
        """
        dims = tensor.dim()
        module = self._modules[name]
        if dims == 2:
            return Layout("nc")
        declared = getattr(module, DECLARED, None)
        if not entering and isinstance(declared, Layout) and len(declared.axes) == dims:
            return declared
        found = self._known(tensor)
        if found is None:
            seen = self._taken_as(tensor)
            if entering:
                seen |= {axes for axes in [self._takes(module, _type(module), dims)] if axes is not None}
            passes = entering or _type(module) in ELEMENTWISE
            seen |= self._inside(self._beside(name) if passes else module, tensor)
            found = Layout(seen.pop()) if len(seen) == 1 else None
        if found is None:
            giver = f"what enters {type(module).__name__}" if entering else type(module).__name__
            return UnknownLayout(giver, batch_first=not (dims == 3 and self._sequence_first))
        return self._with_grid(found, tensor, name)

    def _note(self, module: nn.Module, args: Any, value: Any) -> None:
        kind = _type(module)
        source = args[0] if args and isinstance(args[0], Tensor) else None
        axes = None if source is None else self._takes(module, kind, source.dim())
        if source is not None and axes is not None and kind not in (nn.Linear, nn.Bilinear):  # put on any last axis
            self._takers.setdefault(id(source), []).append((weakref.ref(source), axes))
        tensor = value[0] if isinstance(value, tuple) and value and kind in FIRST | SEQUENCES else value
        if not isinstance(tensor, Tensor) or tensor.dim() not in (3, 4, 5):
            return
        declared = getattr(module, DECLARED, None)
        if isinstance(declared, Layout) and len(declared.axes) == tensor.dim():
            self._remember(tensor, declared)
            self._given.setdefault(id(module), []).append((tensor.shape, declared.axes))
        elif kind in ELEMENTWISE:
            if source is not None and source.shape == tensor.shape and (layout := self._known(source)) is not None:
                self._remember(tensor, layout)
        elif (axes := self._gives(module, kind, source, tensor)) is not None:
            self._remember(tensor, Layout(axes))
            self._given.setdefault(id(module), []).append((tensor.shape, axes))

    def _gives(self, module: nn.Module, kind: type, source: Tensor | None, tensor: Tensor) -> Axes | None:
        """The axes of what a module gave, by its type."""
        if kind in FIRST:
            spatial = SPATIAL.get(kind)
            return CHANNELS_FIRST[tensor.dim()] if spatial is None or tensor.dim() == spatial + 2 else None
        if kind in SEQUENCES:
            first = _batch_first(module)
            return None if first is None or tensor.dim() != 3 else "nlc" if first else "lnc"
        if kind in LAST and len(getattr(module, "normalized_shape", (0,))) == 1:
            if tensor.dim() == 3 and self._sequence_first:
                known = None if source is None else self._known(source)  # only what came in can say which is first
                return known.axes if known is not None and known.tokens else None
            return CHANNELS_LAST[tensor.dim()]
        return None

    def _takes(self, module: nn.Module, kind: type, dims: int) -> Axes | None:
        """The axes of what enters a module, by its type."""
        if kind in FIRST:
            spatial = SPATIAL.get(kind)
            return CHANNELS_FIRST.get(dims) if spatial is None or dims == spatial + 2 else None
        if kind in SEQUENCES and dims == 3:
            first = _batch_first(module)
            return None if first is None else "nlc" if first else "lnc"
        if kind in LAST - {nn.Embedding} and len(getattr(module, "normalized_shape", (0,))) == 1:
            return None if dims == 3 and self._sequence_first else CHANNELS_LAST.get(dims)
        return None

    def _taken_as(self, tensor: Tensor) -> set[Axes]:
        """The axes that the certain modules say that took in this very tensor."""
        return {axes for reference, axes in self._takers.get(id(tensor), ()) if reference() is tensor}

    def _inside(self, scope: nn.Module, tensor: Tensor) -> set[Axes]:
        """The axes that the certain modules inside a module say of this shape."""
        seen = {
            axes
            for module in scope.modules()
            for shape, axes in self._given.get(id(module), ())
            if shape == tensor.shape
        }
        # where all sides are equal a permuted tensor has the same shape, and shows only in its strides
        if len(set(tensor.shape[1:])) == 1 and not _in_order(tensor):
            return set()
        return seen

    def _with_grid(self, layout: Layout, tensor: Tensor, name: str) -> Layout:
        """A layout of tokens with the grid that a module around the tapped one declares for as many tokens."""
        if not layout.tokens or layout != Layout(layout.axes):
            return layout
        length = tensor.shape[layout.axes.index("l")]
        for scope in self._around(name):
            declared = getattr(scope, DECLARED, None)
            if isinstance(declared, Layout) and declared.axes == layout.axes and declared.number == length:
                return declared
        return layout

    def _around(self, name: str) -> Iterator[nn.Module]:
        """The modules that hold a module, from the innermost to the model itself."""
        while name:
            name = name.rpartition(".")[0]
            yield self._modules[name]

    def _beside(self, name: str) -> nn.Module:
        """The module in whose forward pass a module is called: the innermost around it that is no mere container."""
        containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
        return next((module for module in self._around(name) if type(module) not in containers), self._modules[""])

    def _remember(self, tensor: Tensor, layout: Layout) -> None:
        self._tensors[id(tensor)] = weakref.ref(tensor), layout

    def _known(self, tensor: Tensor) -> Layout | None:
        reference, layout = self._tensors.get(id(tensor), (None, None))
        return layout if reference is not None and reference() is tensor else None


def _type(module: nn.Module) -> type:
    """The type of a module before parametrizations and ``fully_shard``, which put a subclass in its place."""
    kind: type = type_before_parametrizations(module)
    if kind.__name__.startswith("FSDP") and kind.__module__.startswith("torch."):
        return kind.__bases__[-1]
    return kind


def _batch_first(module: nn.Module) -> bool | None:
    found = getattr(module, "batch_first", None)
    if found is None:  # layers of a transformer keep it in their attention, stacks in their layers
        layers = getattr(module, "layers", None)
        layer = layers[0] if isinstance(layers, nn.ModuleList) and len(layers) else module
        found = getattr(getattr(layer, "self_attn", None), "batch_first", None)
    return found if isinstance(found, bool) else None


def _sequence_first(module: nn.Module) -> bool:
    return _type(module) in SEQUENCES and _batch_first(module) is False


def _in_order(tensor: Tensor) -> bool:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if tensor.is_contiguous():
        return True
    return tensor.dim() in formats and tensor.is_contiguous(memory_format=formats[tensor.dim()])
