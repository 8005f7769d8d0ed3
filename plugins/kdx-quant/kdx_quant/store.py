"""Models whose weights are held as int8: frozen teachers in a quarter of the memory."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn
from typing_extensions import override

from kdx import Assistant, Ref, Stage
from kdx.students import Derivation, Edit, Origin, Plan, layer_at
from kdx_quant.quantise import quantisable
from kdx_quant.stored import STORED, store_layer

__all__ = ["ByStore", "Store", "StoredTeacher"]


class Store(Edit):
    """Makes layers hold their weights as int8, a step for each output channel; they compute in full precision.

    Args:
        layers: names of linear layers and convolutions.
    """

    how: Literal["store-int8"] = "store-int8"
    layers: list[str]

    @override
    def build(self, model: nn.Module) -> None:
        for name in self.layers:
            store_layer(layer_at(model, name, tuple(STORED)))

    @override
    def derive(self, model: nn.Module, inputs: Any) -> dict[str, Origin]:
        before = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self.build(model)
        return {
            name: Origin("measured", tuple(tensor.shape), before[name.rpartition(".")[0] + ".weight"])
            for name, tensor in model.state_dict().items()
            if name not in before
        }


class ByStore(Derivation):
    """A model that holds its weights as int8, for a teacher that is no longer trained, see :class:`Store`.

    Only biases and norms remain parameters. In training an input is not rounded.

    Args:
        skip: names of layers to leave alone, ``*`` and ``?`` allowed.

    Example:
        >>> import kdx, torch
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> kdx.students.derive(net, torch.zeros(2, 3), how=ByStore()).model[0].levels.dtype
        torch.int8
    """

    edit = Store
    needs_budget = False

    def __init__(self, *, skip: list[str] | None = None) -> None:
        self.skip = [skip] if isinstance(skip, str) else list(skip or ())

    @override
    def plan(self, model: nn.Module, inputs: Any) -> Plan:
        found, kept = quantisable(model, inputs, self.skip)
        edits = [Store(layers=found), Store(layers=[])]
        return Plan(2 if found else 1, lambda place: edits[place if found else 1], kept)


class StoredTeacher(Assistant):
    """The trained teacher is held as int8 and teaches so: a quarter of the memory, nearly the same outputs.

    Plan: ``int8-teacher``, derived from the stage ``teacher`` and not trained, and ``distilled``. The report shows what
    the teacher loses in accuracy and gains in size.

    Args:
        skip: names of the teacher's layers to leave in full precision, see :class:`ByStore`.

    Example:
        >>> [(stage.name, stage.teachers) for stage in StoredTeacher().plan(Ref("convnet"), Ref("mlp"))]
        [('int8-teacher', ()), ('distilled', ('int8-teacher',))]
    """

    def __init__(self, *, skip: list[str] | None = None) -> None:
        self.model = Ref("derived", how={"name": "store-int8", "skip": skip or []})

    @override
    def plan(self, teacher: Ref, student: Ref) -> list[Stage]:
        return [
            Stage("int8-teacher", "untrained", self.model),
            Stage("distilled", "distilled", student, ("int8-teacher",)),
        ]
