"""The stages of a network, found by looking at what its modules give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from kdx.batch import Batch
from kdx.capture import clean_name, unwrap
from kdx.schemes.parts.rest import run_hooked

__all__ = ["find_stages"]

BLOCKS = 4
Shapes = dict[str, tuple[int, ...]]
POOLING = (nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def find_stages(model: nn.Module, inputs: Any, *, blocks: int = BLOCKS) -> tuple[str, ...]:
    """Names of the modules that end the stages of a network, from shallow to deep.

    - **A transformer** has a list of blocks (``nn.Sequential`` or ``nn.ModuleList``) that all give tokens ``[N, L, D]``
      of one shape; of several such lists the one with most parameters counts. Of more than ``blocks`` blocks that many
      are taken, evenly spaced, the last one among them.
    - **A CNN** is taken apart until there is a row of modules that give maps ``[N, C, H, W]``. These are grouped in the
      order of the forward pass by the size ``H x W`` of their maps (and by channels, if all maps have one size). A
      group with weights is a stage, and its last module that is no pooling ends it. Where some groups have blocks
      (modules with modules inside), groups without one are a stem and no stage.

    Args:
        model: any module; nothing about it changes. It runs once, in evaluation mode.
        inputs: what the model takes, see :class:`kdx.Batch`.
        blocks: how many blocks of a transformer are taken at most.

    Returns:
        At least two names, as taps.

    Raises:
        ValueError: fewer than two stages were found.

    Example:
        >>> import torch
        >>> from kdx.models import ResNet, ViT
        >>> find_stages(ResNet(8), torch.zeros(2, 1, 28, 28))
        ('layer1', 'layer2', 'layer3')
        >>> find_stages(ViT(dim=8, depth=6, heads=2), torch.zeros(2, 1, 28, 28))
        ('blocks.0', 'blocks.2', 'blocks.3', 'blocks.5')
    """
    plain = unwrap(model)
    shapes = _shapes(model, plain, inputs)
    found = _of_transformer(plain, shapes, blocks) or _of_cnn(plain, shapes, slice(1, None))
    if len(found) < 2:
        found = _of_cnn(plain, shapes, slice(None))
    if len(found) < 2:
        seen = f"only {found[0]!r}" if found else "none"
        raise ValueError(
            f"stages: found {seen} in {type(plain).__name__}; neither a list of blocks that give tokens [N, L, D] nor "
            "modules that give maps [N, C, H, W] of different sizes. Name them: stages=('layer1', 'layer2', ...)"
        )
    return tuple(found)


def _shapes(model: nn.Module, plain: nn.Module, inputs: Any) -> Shapes:
    """Name -> shape of what a module gives for each sample, in the order in which modules are done."""
    rows = Batch(inputs).rows
    shapes: Shapes = {}

    def record(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, value: Any) -> None:
            if isinstance(value, tuple | list):
                value = next((part for part in value if isinstance(part, Tensor)), None)
            if isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == rows:
                shapes.pop(name, None)
                shapes[name] = tuple(value.shape[1:])

        return hook

    handles = [module.register_forward_hook(record(clean_name(name))) for name, module in plain.named_modules() if name]
    run_hooked(model, inputs, handles)
    return shapes


def _of_transformer(plain: nn.Module, shapes: Shapes, blocks: int) -> list[str]:
    lists = []
    for name, module in plain.named_modules():
        if not isinstance(module, nn.Sequential | nn.ModuleList) or len(module) < 2:
            continue
        names = [clean_name(f"{name}.{child}" if name else child) for child, _ in module.named_children()]
        given = {shapes.get(child) for child in names}
        shape = next(iter(given))
        if len(given) == 1 and shape is not None and len(shape) == 2:
            lists.append((sum(parameter.numel() for parameter in module.parameters()), names))
    if not lists:
        return []
    names = max(lists)[1]
    taken = min(blocks, len(names))
    return [names[(k + 1) * len(names) // taken - 1] for k in range(taken)]


def _of_cnn(plain: nn.Module, shapes: Shapes, by: slice) -> list[str]:
    """Last modules of the stages, which are runs of maps that have one shape in the axes ``by``."""
    maps: Shapes = {name: shape for name, shape in shapes.items() if len(shape) == 3}
    groups: list[tuple[tuple[int, ...], list[tuple[str, nn.Module]]]] = []
    for name, module in _trunk(plain, "", maps):
        size = maps[name][by]
        if not groups or groups[-1][0] != size:
            groups.append((size, []))
        groups[-1][1].append((name, module))
    stages = [
        (_last(group), any(_is_block(module) for _, module in group))
        for _, group in groups
        if any(parameter.dim() > 2 for _, module in group for parameter in module.parameters())
    ]
    blocks = [name for name, has_block in stages if has_block]
    return blocks or [name for name, _ in stages]


def _last(group: list[tuple[str, nn.Module]]) -> str:
    return next((name for name, module in reversed(group) if not isinstance(module, POOLING)), group[-1][0])


def _is_block(module: nn.Module) -> bool:
    return any(True for _ in module.children()) and any(True for _ in module.parameters())


def _trunk(module: nn.Module, prefix: str, maps: Shapes) -> Iterator[tuple[str, nn.Module]]:
    """The modules in a row that give maps, in the order in which they are done.

    A module is taken apart if it gives no map itself but holds modules that do (what returns an object, a list), if it
    is the only one with weights, or if the modules in it give maps of three sizes and more.
    """
    parts = _parts(module, prefix, maps)
    alone = sum(any(True for _ in part.parameters()) for _, part in parts) == 1
    for name, part in parts:
        inner = _parts(part, f"{name}.", maps)
        if inner and (alone or len({maps[key][1:] for key, _ in inner}) >= 3):
            yield from _trunk(part, f"{name}.", maps)
        else:
            yield name, part


def _parts(module: nn.Module, prefix: str, maps: Shapes) -> list[tuple[str, nn.Module]]:
    """The outermost modules within ``module`` that give maps, in the order in which they are done."""
    found = []
    for child_name, child in module.named_children():
        name = clean_name(f"{prefix}{child_name}")
        found += [(name, child)] if name in maps else _parts(child, f"{name}.", maps)
    order = list(maps)
    return sorted(found, key=lambda part: order.index(part[0]))
