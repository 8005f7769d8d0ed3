"""Models whose mode, training or evaluation, is baked into a graph: exported, traced and frozen ones."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

__all__ = ["baked_training", "bakes_mode", "switch"]

_SWITCHES = ("train", "training")
_RATES = ("p", "dropout", "dropout_p")


def bakes_mode(model: nn.Module) -> bool:
    """Whether ``train()`` and ``eval()`` change nothing about a model: an exported graph, a traced or frozen module."""
    exported = isinstance(model, fx.GraphModule) and any(
        isinstance(node.target, torch._ops.OpOverload) for node in model.graph.nodes
    )
    return exported or isinstance(model, torch.jit._trace.TopLevelTracedModule) or not hasattr(model, "training")


def baked_training(model: nn.Module) -> list[str]:
    """Operations that a model does as in training whatever its mode is, as ``dropout`` in a graph that was exported or
    traced while training; empty where there is none.

    A dropout of rate 0 is none. A scripted module keeps its mode, so that nothing in it is baked in.
    """
    if isinstance(model, torch.jit.ScriptModule):
        return sorted(set(_in_script(model)))
    found = set(_in_graph(model)) if isinstance(model, fx.GraphModule) else set()
    for child in model.children():
        found |= set(baked_training(child))
    return sorted(found)


def switch(graph: fx.GraphModule, *, training: bool) -> None:
    """Lets every operation of an exported graph that has a switch for it run as in training, or as in evaluation.

    Rates, momenta and every other argument stay. Attention has no such switch.
    """
    changed = False
    for node in graph.graph.nodes:
        names = _arguments(node.target) if isinstance(node.target, torch._ops.OpOverload) else []
        for place, name in enumerate(names):
            if name not in _SWITCHES or node.op != "call_function":
                continue
            if place < len(node.args):
                changed |= node.args[place] is not training
                node.update_arg(place, training)
            else:
                changed |= node.kwargs.get(name) is not training
                node.update_kwarg(name, training)
    if changed:
        graph.recompile()


def _in_graph(model: fx.GraphModule) -> Iterator[str]:
    for node in model.graph.nodes:
        if node.op == "call_function":
            names = _arguments(node.target)
            if _trains(dict(zip(names, node.args, strict=False)) | node.kwargs):
                yield getattr(node.target, "__name__", str(node.target)).partition(".")[0]


def _arguments(function: Any) -> list[str]:
    if isinstance(function, torch._ops.OpOverload):
        return [argument.name for argument in function._schema.arguments]
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # written in C
        return []


def _in_script(model: torch.jit.ScriptModule) -> Iterator[str]:
    for node in model.inlined_graph.nodes():
        schema = node.schema()
        if schema.startswith("aten::"):
            names = [argument.name for argument in torch._C.parse_schema(schema).arguments]
            values = [value.toIValue() if value.node().kind() == "prim::Constant" else None for value in node.inputs()]
            if _trains(dict(zip(names, values, strict=False))):
                yield node.kind().partition("::")[2]


def _trains(given: Mapping[str, object]) -> bool:
    rates = [given[name] for name in _RATES if isinstance(given.get(name), int | float)]
    if any(given.get(name) is True for name in _SWITCHES):
        return not rates or any(rates)
    return any(rates) and "dropout_p" in given  # of attention, which has no switch
