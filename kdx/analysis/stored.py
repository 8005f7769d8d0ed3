"""The weights that a model stores: how many, in how many bytes and bits, and how many of them are zero."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from kdx.analysis.packed import unpacked
from kdx.analysis.tensors import dense, stored_bytes
from kdx.capture import unwrap
from kdx.errors import CountError

__all__ = ["Stored", "count_parameters", "count_stored"]

_CODES = {torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64}


@dataclass(frozen=True, slots=True)
class Stored:
    """The weights that a model stores.

    Args:
        parameters: number of weights that it computes with; of quantised ones those that they stand for.
        bytes: of everything that is stored, buffers, scales and unused copies too.
        bits: stored for one weight, with the scales of quantised ones and with copies that nothing uses; None if there
            are no weights.
        sparsity: share of zeros in the weights of two or more dimensions, after quantisation and masks; None if there
            are none, or none with values (on the device ``meta``).
    """

    parameters: int
    bytes: int
    bits: float | None
    sparsity: float | None


def count_stored(model: nn.Module) -> Stored:
    """Counts what a model stores, whatever its weights are kept in.

    These are parameters; tensors of torchao and other subclasses; sparse tensors; the packed objects of
    ``torch.ao.quantization``; and the integers that an exported graph dequantises (an exported graph keeps the float
    weights that it no longer uses: they count in bytes and bits, and not as parameters). A module of one's own that
    keeps an integer for each weight says so: ``kdx_codes = {"levels": ("steps",)}`` names the buffers of integers, and
    those of the scales that belong to each.

    Args:
        model: any module; nothing about it changes.

    Raises:
        CountError: the weights are where they cannot be counted; it says where.

    Example:
        >>> count_stored(nn.Linear(3, 4))
        Stored(parameters=16, bytes=64, bits=32.0, sparsity=0.0)
    """
    model = unwrap(model)
    weights, beside, rest = _kept(model)
    parameters = sum(tensor.numel() for tensor in weights)
    in_weights = sum(stored_bytes(tensor) for tensor in (*weights, *beside))
    return Stored(
        parameters,
        in_weights + sum(map(stored_bytes, rest)),
        8 * in_weights / parameters if parameters else None,
        _sparsity(model, weights),
    )


def count_parameters(model: nn.Module) -> int:
    """The number of weights that a model computes with, see :func:`count_stored`; their values are not looked at.

    Raises:
        CountError: see :func:`count_stored`.

    Example:
        >>> count_parameters(nn.Linear(3, 4))
        16
    """
    return sum(tensor.numel() for tensor in _kept(unwrap(model))[0])


def _kept(model: nn.Module) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """All tensors that a model stores: its weights, what is kept for them beside (scales, unused copies), the rest."""
    _check_script(model)
    graph = _in_graphs(model)
    weights: list[Tensor] = []
    rest: list[Tensor] = []
    names = set()
    for name, tensor in model.named_parameters(remove_duplicate=False):
        names.add(name)
        if id(tensor) not in graph.unused:
            _check_codes(name, tensor)
            weights.append(tensor)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        names.add(name)
        if id(buffer) in graph.weights:
            weights.append(buffer)
        elif id(buffer) not in graph.scales:
            _check_buffer(name, buffer)
            rest.append(buffer)
    packed = []
    for name, value in model.state_dict(keep_vars=True).items():
        if name in names:
            continue
        if isinstance(value, Tensor) and not (value.is_quantized or isinstance(value, nn.Parameter)):
            rest.append(value)  # a scale, a zero point
        else:
            packed += unpacked(value)
    places = {(tensor.data_ptr(), tensor.shape): tensor for tensor in packed}  # a recurrent bias is held twice
    beside = [*graph.unused.values(), *graph.scales.values()]
    return [*_once(weights), *places.values()], beside, _once(rest)


def _once(tensors: list[Tensor]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())


def _sparsity(model: nn.Module, weights: list[Tensor]) -> float | None:
    """The share of zeros in the matrices and filters that the model computes with."""
    effective = dict(_effective(model))
    matrices = [effective.get(id(tensor), tensor) for tensor in weights]
    values = [
        dense(tensor) for tensor in matrices if tensor is not None and tensor.dim() > 1 and tensor.device.type != "meta"
    ]
    total = sum(value.numel() for value in values)
    return sum(value.numel() - int(value.count_nonzero()) for value in values) / total if total else None


def _effective(model: nn.Module) -> Iterator[tuple[int, Tensor | None]]:
    """The id of a parameter -> what the model computes with in its place: masked, or parametrised."""
    for module in model.modules():
        buffers = dict(module.named_buffers(recurse=False))
        for name, tensor in module.named_parameters(recurse=False):
            mask = buffers.get(f"{name.removesuffix('_orig')}_mask")  # as torch.nn.utils.prune names them
            if mask is not None and name.endswith("_orig"):
                yield id(tensor), tensor.detach() * mask
        if not isinstance(module, torch.jit.ScriptModule) and parametrize.is_parametrized(module):
            for name, parts in cast(nn.ModuleDict, module.parametrizations).items():
                first, *others = parts.parameters(recurse=False)
                with torch.no_grad():
                    yield id(first), getattr(module, name)
                yield from ((id(other), None) for other in others)


@dataclass(frozen=True, slots=True)
class _InGraphs:
    """By id, the tensors of the graphs in a model that are something else than their names say."""

    weights: dict[int, Tensor]
    scales: dict[int, Tensor]
    unused: dict[int, Tensor]


def _in_graphs(model: nn.Module) -> _InGraphs:
    """Buffers that are dequantised weights, their scales, and the parameters that no node uses any more."""
    found = _InGraphs({}, {}, {})
    for module in model.modules():
        for codes, scales in getattr(module, "kdx_codes", {}).items():
            found.weights[id(getattr(module, codes))] = getattr(module, codes)
            found.scales.update({id(scale): scale for scale in (getattr(module, name) for name in scales)})
        if not isinstance(module, fx.GraphModule):
            continue
        tensors: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
        tensors |= dict(module.named_buffers(remove_duplicate=False))
        held = {node: tensors[str(node.target)] for node in module.graph.nodes if str(node.target) in tensors}
        before = len(found.weights)
        for node in module.graph.nodes:
            if node.op != "call_function" or "dequantize" not in str(node.target) or node.args[0] not in held:
                continue
            codes, *scales = [held[each] for each in node.args if isinstance(each, fx.Node) and each in held]
            found.weights[id(codes)] = codes
            found.scales.update({id(scale): scale for scale in scales})
        if len(found.weights) > before:
            used = {str(node.target) for node in module.graph.nodes if node.op in ("get_attr", "call_module")}
            for name, tensor in module.named_parameters():
                path = name.split(".")
                if not any(".".join(path[:end]) in used for end in range(1, len(path) + 1)):
                    found.unused[id(tensor)] = tensor
    return found


def _check_script(model: nn.Module) -> None:
    """Refuses TorchScript whose weights are constants or packed objects: they are in no list of the module."""
    for name, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            continue
        frozen = not hasattr(module, "training")
        if frozen or "__torch__.torch.classes" in str(getattr(module, "inlined_graph", "")):
            raise CountError(
                f"cannot be counted: {name or type(model).__name__} is TorchScript that keeps its weights "
                f"{'as constants, as torch.jit.freeze leaves them' if frozen else 'in packed objects'}; count the "
                "model that it was made from"
            )


def _check_codes(name: str, tensor: Tensor) -> None:
    if type(tensor.data) is Tensor and not tensor.is_quantized and tensor.dtype in _CODES:
        raise CountError(
            f"cannot be counted: the parameter {name} is {tensor.dtype}, of which kdx does not know how many weights "
            "it stands for; count the model before it was packed"
        )


def _check_buffer(name: str, tensor: Tensor) -> None:
    if tensor.dtype == torch.int8 and tensor.dim() > 1:
        raise CountError(
            f"cannot be counted: the buffer {name} is torch.int8 and may hold packed weights, and kdx does not know "
            "how many; if each integer is one weight, name it in kdx_codes of its module (see "
            "kdx.analysis.count_stored), else keep quantised weights in a tensor of torchao, or count the model before "
            "it was quantised"
        )
