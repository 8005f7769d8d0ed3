"""Students that are trained with rounded weights and activations."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn
from typing_extensions import override

from kdx import Artifact, FinishedStudent
from kdx.errors import StudentError, nearest
from kdx.students import Derivation, Edit, Kept, Origin, Plan, is_tied, layer_at, own_code, record_calls
from kdx_quant.files import KINDS as KINDS_OF_FILES
from kdx_quant.files import Kind, check_installed, write
from kdx_quant.layers import KINDS, Quantised
from kdx_quant.rounding import InputRounding, RowRounding, WeightRounding
from kdx_quant.widths import Widths, read_widths

__all__ = ["ByQuantise", "Quantise", "quantisable"]

Steps = Literal["range", "learned"]


class Quantise(Edit):
    """Makes layers compute with rounded weights and inputs, in training as later in the exported file.

    Every layer keeps its name, its weight and its bias; modules that round are added in it, see
    :class:`kdx_quant.layers.Quantised`.

    Args:
        layers: name of a layer -> its bit widths.
        steps: ``range`` or ``learned``, see :class:`ByQuantise`.
        files: that a stage of a recipe writes, see :class:`ByQuantise`.
    """

    how: Literal["quantise"] = "quantise"
    layers: dict[str, Widths]
    steps: Steps = "range"
    files: tuple[Kind, ...] = ()

    @override
    def build(self, model: nn.Module) -> None:
        self._round(model)

    @override
    def derive(self, model: nn.Module, inputs: Any) -> dict[str, Origin]:
        state = model.state_dict()
        self._round(model)
        return {
            name: Origin("measured", tuple(tensor.shape), tuple(state[name.rsplit(".", 2)[0] + ".weight"].shape))
            for name, tensor in model.state_dict().items()
            if name not in state
        }

    @override
    def finalise(self, model: nn.Module, stage: FinishedStudent) -> list[Artifact]:
        if stage.role not in ("alone", "distilled"):
            return []  # a step on the way
        written = {kind: write(kind, model, stage.example, stage.folder) for kind in self.files}
        return [Artifact(kind, run, [path]) for kind, (path, run) in written.items()]

    def _round(self, model: nn.Module) -> None:
        learned = self.steps == "learned"
        for name, widths in self.layers.items():
            layer: Any = layer_at(model, name, tuple(KINDS))
            if isinstance(layer, Quantised):
                raise StudentError(f"{name!r} is quantised already; derive from the model in full precision")
            layer.__class__ = KINDS[type(layer)]  # the same module, so that whatever holds it holds the new one
            layer.weight_rounding = WeightRounding(layer.weight, widths.weights, learned=learned)
            layer.input_rounding = _input_rounding(widths, layer.weight.device, learned=learned)
            layer.train(layer.training)


class ByQuantise(Derivation):
    """A student of few bits that is trained as such: its linear layers and convolutions, see :class:`Quantise`.

    Weights are rounded with one step per output channel, the inputs of a layer with one step per tensor; sums, norms
    and activation functions stay in full precision. The weights begin as the teacher's, so that a budget is not needed.
    What a layer takes is rounded from the first training batch on, which sets its range.

    Args:
        to: bit widths, by name ``int8``, ``int8-dynamic``, ``int8-int4`` (int8 activations, int4 weights),
            ``int8-int4-dynamic``, ``int8-weights``, ``int4``, ``int4-weights``; or as ``w4a8``, ``w3``,
            ``w8a8-dynamic``. Dynamic ranges are those of linear layers alone, as in torchao: convolutions stay.
        steps: ``range`` follows the largest values; ``learned`` makes the steps parameters (LSQ), which few bits gain
            from.
        ends: least bits of the first and the last layer, which suffer most; 2 treats them as all others.
        skip: names of layers to leave alone, ``*`` and ``?`` allowed.
        files: that a stage of a recipe writes beside the weights of its student, alone and distilled, and puts into the
            report: ``onnx``, ``onnx-int4`` (weights of four bits and less two in a byte), ``onnx-float`` (without
            rounding, to compare with), ``torch-export``. None writes ``onnx`` where the model takes one tensor.
        others: what to do about modules with weights that cannot be quantised: ``keep`` them and say so, or ``refuse``
            the student.

    Raises:
        StudentError: an option is wrong, a name in ``skip`` is no layer, or a module cannot be quantised and ``others``
            is ``refuse``; it is named.

    Paper: Jacob et al., Quantization and Training of Neural Networks, CVPR 2018, https://arxiv.org/abs/1712.05877;
    learned steps: Esser et al., ICLR 2020, https://arxiv.org/abs/1902.08153.

    Example:
        >>> import kdx
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> student = kdx.students.derive(net, torch.zeros(2, 3), how=ByQuantise(to="w4a8"))
        >>> student.model[2].weight_rounding, student.edit.layers["4"].weights
        (WeightRounding(bits=4, learned=False), 8)
    """

    edit = Quantise
    needs_budget = False

    def __init__(
        self,
        *,
        to: str = "int8",
        steps: Steps = "range",
        ends: int = 8,
        skip: list[str] | None = None,
        others: Literal["keep", "refuse"] = "keep",
        files: list[Kind] | None = None,
    ) -> None:
        self.widths = read_widths(to)
        if steps not in ("range", "learned"):
            raise StudentError(f"steps: expected 'range' or 'learned', got {steps!r}")
        if others not in ("keep", "refuse"):
            raise StudentError(f"others: expected 'keep' or 'refuse', got {others!r}")
        if not isinstance(ends, int) or not 2 <= ends <= 8:
            raise StudentError(f"ends: expected bits from 2 to 8, got {ends!r}")
        self.steps, self.ends, self.others = steps, ends, others
        self.files = files if files is None else list(files)
        if wrong := [kind for kind in files or () if kind not in KINDS_OF_FILES]:
            raise StudentError(f"files: expected of {', '.join(KINDS_OF_FILES)}, got {wrong[0]!r}")
        check_installed(files or ())
        self.skip = [skip] if isinstance(skip, str) else list(skip or ())

    @override
    def plan(self, model: nn.Module, inputs: Any) -> Plan:
        found, kept = quantisable(model, inputs, self.skip)
        if self.widths.dynamic:
            reason = "dynamic ranges are those of rows, which a convolution does not take; to: int8 or int8-weights"
            kept += [_kept(model, name, reason) for name in found if not _is_linear(model, name)]
            found = [name for name in found if _is_linear(model, name)]
        if self.others == "refuse" and (left := [item for item in kept if item.reason != _SKIPPED]):
            shown = "; ".join(f"{item.module}: {item.reason}" for item in left)
            raise StudentError(
                f"quantise leaves modules in full precision: {shown}. Name them in skip=, or others=keep"
            )
        ends = {found[0], found[-1]} if found else set()
        layers = {name: self.widths.at_least(self.ends) if name in ends else self.widths for name in found}
        files = self._files(inputs)
        edits = [Quantise(layers=chosen, steps=self.steps, files=files) for chosen in (layers, {})]
        return Plan(2 if found else 1, lambda place: edits[place if found else 1], kept)

    def _files(self, inputs: Any) -> tuple[Kind, ...]:
        """The files that a stage writes, known to be possible before it trains."""
        one = isinstance(inputs, torch.Tensor)
        if self.files and not one:
            raise StudentError(
                f"files: are written of models that take one tensor, this one takes {type(inputs).__name__}; write "
                "files: [], and export the student from Python"
            )
        if self.files is None and one:
            check_installed(["onnx"])
            return ("onnx",)
        return tuple(self.files or ())


_SKIPPED = "left alone, as skip says"


def quantisable(model: nn.Module, inputs: Any, skip: list[str]) -> tuple[list[str], list[Kept]]:
    """The layers that can be quantised, in the order in which they run, and the modules with weights that cannot.

    Args:
        model: it runs once on the example.
        inputs: an example of what it takes.
        skip: patterns of names of layers to leave alone.

    Raises:
        StudentError: a pattern names no layer.
    """
    modules = dict(model.named_modules())
    for pattern in skip:
        if not any(fnmatchcase(name, pattern) for name in modules):
            raise StudentError(
                f"skip: {pattern!r} names no layer of {type(model).__name__}; {nearest(pattern, modules)}"
            )
    inside = {f"{name}.out_proj" for name, module in modules.items() if isinstance(module, nn.MultiheadAttention)}
    tied, calls = is_tied(model), record_calls(model, inputs)
    found: list[str] = []
    kept: list[Kept] = []
    for name, module in modules.items():
        weights = [one for one in module.parameters(recurse=False) if one.dim() > 1]
        if not weights or name in inside:
            continue
        if any(fnmatchcase(name, pattern) for pattern in skip):
            kept.append(_kept(model, name, _SKIPPED))
        elif isinstance(module, nn.MultiheadAttention):
            kept.append(_kept(model, name, "it reads its weights as tensors, not through layers"))
        elif not isinstance(module, tuple(KINDS)):
            kinds = ", ".join(kind.__name__ for kind in KINDS)
            kept.append(_kept(model, name, f"there is a way to quantise {kinds} alone"))
        elif reason := own_code(module, tuple(KINDS)):
            kept.append(_kept(model, name, reason))
        elif any(id(weight) in tied for weight in weights):
            kept.append(_kept(model, name, "its weight is shared with another module"))
        elif name not in calls:
            kept.append(_kept(model, name, "it did not run on the example"))
        else:
            found.append(name)
    if not found and not kept:
        kept.append(Kept(type(model).__name__, "it has no layers with weights"))
    return sorted(found, key=list(calls).index), kept


def _kept(model: nn.Module, name: str, reason: str) -> Kept:
    return Kept(f"{name} ({type(model.get_submodule(name)).__name__})", reason)


def _is_linear(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name), nn.Linear)


def _input_rounding(widths: Widths, device: torch.device, *, learned: bool) -> InputRounding | RowRounding | None:
    if widths.activations is None:
        return None
    if widths.dynamic:
        return RowRounding(widths.activations)
    return InputRounding(widths.activations, learned=learned, device=device)
