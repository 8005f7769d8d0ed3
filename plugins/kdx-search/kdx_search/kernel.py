"""Students whose convolutions have smaller windows."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx.students import Derivation, Edit, Kept, Origin, Plan, StudentError, record_calls

__all__ = ["ByKernel", "Kernel", "centre", "elastic_windows", "window_sizes"]

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d

LEAST = 3
"""The smallest window: one of 1x1 would see no neighbour."""
_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Kernel(Edit):
    """Gives convolutions smaller windows: the centre of the old ones, padded less, so that outputs keep their size.

    A once-for-all network shares the centre of a large kernel with the small ones (Cai et al. 2020,
    https://arxiv.org/abs/1908.09791, section 3.3); the learned matrices between them that the paper adds are left out.

    Args:
        windows: convolution -> the new size of its window along every axis that is larger now.
    """

    how: Literal["kernel"] = "kernel"
    windows: dict[str, int]

    def build(self, model: nn.Module) -> None:
        """See :meth:`kdx.students.Edit.build`."""
        self._replace(model, copy=False)

    def derive(self, model: nn.Module, inputs: Any) -> dict[str, Origin]:
        """See :meth:`kdx.students.Edit.derive`."""
        return self._replace(model, copy=True)

    def _replace(self, model: nn.Module, *, copy: bool) -> dict[str, Origin]:
        origins: dict[str, Origin] = {}
        for name, size in self.windows.items():
            old = _conv_at(model, name)
            if size not in (known := window_sizes(old)):
                raise StudentError(f"the window of {name!r} can be one of {known}; got {size}")
            new = _smaller(old, size)
            if copy:
                with torch.no_grad():
                    new.weight.copy_(centre(old.weight, size))
                    if old.bias is not None and new.bias is not None:
                        new.bias.copy_(old.bias)
                origins[f"{name}.weight"] = Origin("sliced", tuple(new.weight.shape), tuple(old.weight.shape))
            path, _, own = name.rpartition(".")
            setattr(model.get_submodule(path), own, new)
        return origins


class ByKernel(Derivation):
    """Smaller windows of convolutions, see :class:`Kernel`; without a budget all that can be are 3 wide.

    The smaller windows come one step at a time, from the convolutions with the most weights on.

    Paper: Cai et al., Once-for-All, ICLR 2020, https://arxiv.org/abs/1908.09791.
    """

    edit = Kernel
    needs_budget = False

    @override
    def plan(self, model: nn.Module, inputs: Any) -> Plan:
        found, kept = elastic_windows(model, inputs)
        weights = {name: model.get_submodule(name).weight.numel() for name in found}  # type: ignore[operator]
        order = [name for name in sorted(found, key=lambda name: -weights[name]) for _ in found[name][1:]]
        if not order and not kept:
            kept.append(Kept(type(model).__name__, f"it has no convolution with a window larger than {LEAST}"))

        def edit(place: int) -> Kernel:
            cut = order[: len(order) - place]
            return Kernel(windows={name: found[name][-1 - cut.count(name)] for name in found if name in cut})

        return Plan(len(order) + 1, edit, kept)


def elastic_windows(model: nn.Module, inputs: Any) -> tuple[dict[str, tuple[int, ...]], list[Kept]]:
    """The convolutions whose window can be smaller -> its sizes from the smallest to its own; and those that keep it.

    Args:
        model: any module; nothing about it changes.
        inputs: an example of what it takes.
    """
    owners = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    modules = dict(model.named_modules())
    found: dict[str, tuple[int, ...]] = {}
    kept: list[Kept] = []
    for name in record_calls(model, inputs):
        layer = modules[name]
        if not isinstance(layer, _CONV) or max(layer.kernel_size) <= LEAST:
            continue
        what = f"{name} ({type(layer).__name__})"
        sizes = window_sizes(layer)
        if type(layer) not in _CONV:
            kept.append(Kept(what, "a class of its own, whose code a plain convolution would not run"))
        elif owners[id(layer.weight)] > 1:
            kept.append(Kept(what, "its weight is shared with another module"))
        elif len(sizes) == 1:
            kept.append(Kept(what, "its window is even, or it pads less than half of it, so that outputs would grow"))
        else:
            found[name] = sizes
    return found, kept


def window_sizes(layer: Conv) -> tuple[int, ...]:
    """The sizes that a convolution's window can have, from the smallest to its own, while outputs keep their size."""
    largest = max(layer.kernel_size)
    sizes = [size for size in range(LEAST, largest, 2) if _fits(layer, size)]
    return (*sizes, largest)


def centre(weight: Tensor, size: int) -> Tensor:
    """The centre of filters, a view.

    Args:
        weight: ``[O, I, *K]``.
        size: of the window along every axis that is larger.

    Example:
        >>> centre(torch.arange(25.0).reshape(1, 1, 5, 5), 3)[0, 0, 0]
        tensor([6., 7., 8.])
    """
    for dim in range(2, weight.dim()):
        if (more := weight.shape[dim] - size) > 0:
            weight = weight.narrow(dim, more // 2, size)
    return weight


def _conv_at(model: nn.Module, name: str) -> Conv:
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        layer = None
    if not isinstance(layer, _CONV):
        found = "none" if layer is None else type(layer).__name__
        raise StudentError(f"{type(model).__name__} must have a convolution at {name!r}; there is {found}")
    return layer


def _fits(layer: Conv, size: int) -> bool:
    """Whether every larger axis can be cut to a size and its padding by as much."""
    for axis, window in enumerate(layer.kernel_size):
        if window > size and ((window - size) % 2 or _padding(layer, axis, min(window, size)) < 0):
            return False
    return True


def _padding(layer: Conv, axis: int, window: int) -> int:
    """The padding along an axis that gives outputs of the same size with another window."""
    if isinstance(layer.padding, str):
        return 0 if layer.padding == "same" else -1
    return int(layer.padding[axis]) - layer.dilation[axis] * (layer.kernel_size[axis] - window) // 2


def _smaller(old: Conv, size: int) -> Conv:
    windows = tuple(min(window, size) for window in old.kernel_size)
    padding: Any = old.padding
    if not isinstance(padding, str):
        padding = tuple(_padding(old, axis, window) for axis, window in enumerate(windows))
    kind: Any = type(old)
    made: Conv = kind(
        old.in_channels,
        old.out_channels,
        windows,
        stride=old.stride,
        padding=padding,
        dilation=old.dilation,
        groups=old.groups,
        bias=old.bias is not None,
        padding_mode=old.padding_mode,
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    for parameter in made.parameters():
        parameter.requires_grad_(old.weight.requires_grad)
    return made.train(old.training)
