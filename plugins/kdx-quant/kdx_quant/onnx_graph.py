"""Passes over an ONNX graph of quantised layers, so that runtimes find integer kernels and the file is small."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

__all__ = ["fold_norms", "leave_out_notes", "leave_out_relus", "pack_four_bits"]

Array = NDArray[Any]


class _Graph:
    """The nodes by what they give and what takes it, and the constants by name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.constants = {one.name: one for one in self.graph.initializer}
        self.maker = {name: node for node in self.graph.node for name in node.output}
        self.takers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.takers.setdefault(name, []).append(node)
        for output in self.graph.output:
            self.takers.setdefault(output.name, []).append(onnx.NodeProto())

    def value(self, name: str) -> Array | None:
        """A constant as an array."""
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def add(self, name: str, value: Array) -> str:
        """A new constant; its name, which is ``name`` if that is free."""
        while name in self.constants:
            name += "_"
        self.constants[name] = numpy_helper.from_array(value, name)
        self.graph.initializer.append(self.constants[name])
        return name

    def replace(self, name: str, by: str) -> None:
        """Everything that takes one tensor takes another."""
        for node in self.graph.node:
            for place, taken in enumerate(node.input):
                if taken == name:
                    node.input[place] = by

    def remove(self, node: onnx.NodeProto) -> None:
        """Takes a node out."""
        self.graph.node.remove(node)


def fold_norms(model: onnx.ModelProto) -> None:
    """Folds BatchNorms into the steps and the bias of the convolution before them; levels change their sign at most.

    Steps are per output channel, so that ``norm(levels * step)`` is again levels times a step, and nothing is rounded
    anew. Where max-pooling stands between, the norm is folded if its scales are all above 0: it then commutes.

    Args:
        model: changed in place. Norms that cannot be folded stay.
    """
    graph = _Graph(model)
    for norm in [node for node in model.graph.node if node.op_type == "BatchNormalization"]:
        scale, shift, mean, variance = (graph.value(name) for name in norm.input[1:5])
        between = graph.maker.get(norm.input[0])
        pool = between if between is not None and between.op_type == "MaxPool" else None
        conv = graph.maker.get(pool.input[0]) if pool is not None else between
        weight = None if conv is None or conv.op_type != "Conv" else graph.maker.get(conv.input[1])
        if weight is None or weight.op_type != "DequantizeLinear":
            continue
        if scale is None or shift is None or mean is None or variance is None:
            continue
        levels, steps = graph.value(weight.input[0]), graph.value(weight.input[1])
        used_once = all(len(graph.takers[name]) == 1 for name in (conv.output[0], weight.output[0], norm.input[0]))
        if levels is None or steps is None or not used_once:
            continue
        epsilon = next((one.f for one in norm.attribute if one.name == "epsilon"), 1e-5)
        factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
        if (factor == 0).any() or (pool is not None and (factor < 0).any()):
            continue
        bias = graph.value(conv.input[2]) if len(conv.input) > 2 else np.zeros(len(factor))
        if bias is None:
            continue
        sign = np.sign(factor).astype(levels.dtype).reshape(-1, *[1] * (levels.ndim - 1))
        weight.input[0] = graph.add(f"{weight.input[0]}", levels * sign)
        weight.input[1] = graph.add(f"{weight.output[0]}.steps", (steps * np.abs(factor)).astype(np.float32))
        del conv.input[2:]
        conv.input.append(graph.add(f"{conv.output[0]}.bias", ((bias - mean) * factor + shift).astype(np.float32)))
        graph.replace(norm.output[0], norm.input[0])
        graph.takers[norm.input[0]] = graph.takers.get(norm.output[0], [])
        graph.remove(norm)
    _drop_unused(model)


def leave_out_notes(model: onnx.ModelProto) -> None:
    """Leaves out what the exporter notes at every node about the code it came from: tens of kilobytes in a small net.

    Args:
        model: changed in place.
    """
    graph = model.graph
    for noted in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del noted.metadata_props[:]
        noted.doc_string = ""


def leave_out_relus(model: onnx.ModelProto) -> None:
    """Leaves out ReLUs before a rounding whose lowest level stands for 0, which cuts off what is below by itself.

    Args:
        model: changed in place.
    """
    graph = _Graph(model)
    for relu in [node for node in model.graph.node if node.op_type == "Relu"]:
        takers = graph.takers[relu.output[0]]
        if all(node.op_type == "QuantizeLinear" and graph.value(node.input[2]) == 0 for node in takers):
            graph.replace(relu.output[0], relu.input[0])
            graph.remove(relu)


def pack_four_bits(model: onnx.ModelProto) -> None:
    """Stores weights whose levels need four bits as int4, two in a byte.

    Args:
        model: changed in place; its opset must be 21 or later.
    """
    graph = _Graph(model)
    for node in [node for node in model.graph.node if node.op_type == "DequantizeLinear"]:
        levels = graph.value(node.input[0])
        if levels is None or levels.dtype != np.int8 or np.abs(levels).max(initial=0) > 7:
            continue
        name, flat = f"{node.input[0]}.int4", levels.reshape(-1)
        pairs = np.append(flat, np.zeros(flat.size % 2, np.int8)).reshape(-1, 2).astype(np.uint8) & 0xF
        packed = (pairs[:, 0] | pairs[:, 1] << 4).astype(np.uint8).tobytes()
        model.graph.initializer.append(helper.make_tensor(name, onnx.TensorProto.INT4, levels.shape, packed, raw=True))
        node.input[0] = name
        del node.input[2:]
    _drop_unused(model)


def _drop_unused(model: onnx.ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input}
    for one in [one for one in model.graph.initializer if one.name not in used]:
        model.graph.initializer.remove(one)
    del model.graph.value_info[:]
