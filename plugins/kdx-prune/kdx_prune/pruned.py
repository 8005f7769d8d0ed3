"""A student made from an earlier stage's model by ways of pruning, one after the other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from typing_extensions import override

import kdx
from kdx import Ref
from kdx.analysis import measure_cost
from kdx.assistants import FinishedStages, Produced, Structure
from kdx.errors import PlanError
from kdx.students import Contract, StudentData, derive

__all__ = ["Budget", "Cut", "Pruned"]

Kind = Literal["params", "flops", "latency"]
_AMOUNT = re.compile(r"\s*([0-9_]*\.?[0-9]+)\s*(%|k|M|G|ms)?\s*")
_UNIT = {"%": 0.01, "k": 1e3, "M": 1e6, "G": 1e9, "ms": 1.0}


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that a student may cost, as a share of the teacher's cost or an amount.

    Args:
        kind: ``params``, ``flops`` or ``latency`` (milliseconds of one sample on one thread).
        value: ``"25%"`` or a number up to 1 for a share, ``60000``, ``"60k"`` or ``"2.5ms"`` for an amount.
    """

    kind: Kind
    value: str | float

    @classmethod
    def of(cls, options: Mapping[str, Any], where: str) -> Budget:
        """The one budget among options.

        Raises:
            PlanError: none or several are given, or the value is neither a share nor an amount.
        """
        given = [kind for kind in get_args(Kind) if options.get(kind) is not None]
        if len(given) != 1:
            raise PlanError(f"{where}: give one budget: params, flops or latency, as flops: 25%; got {given or 'none'}")
        value = options[given[0]]
        if isinstance(value, bool) or not (isinstance(value, int | float) or _AMOUNT.fullmatch(str(value))):
            raise PlanError(f"{where}: {given[0]} must be a share as 25% or an amount as 60k or 2.5ms; got {value!r}")
        return cls(given[0], value)

    def amount(self, whole: float) -> float:
        """The budget in the unit of a cost.

        Args:
            whole: what the teacher costs.

        Example:
            >>> Budget("flops", "25%").amount(800.0), Budget("params", "60k").amount(0.0)
            (200.0, 60000.0)
        """
        if isinstance(self.value, str):
            found = _AMOUNT.fullmatch(self.value)
            assert found is not None
            number = float(found[1].replace("_", "")) * _UNIT.get(found[2] or "", 1.0)
            return number * whole if found[2] == "%" else number
        return self.value * whole if isinstance(self.value, float) and self.value <= 1 else float(self.value)


@dataclass(frozen=True, slots=True)
class Cut:
    """One way of making a model smaller, and how far.

    Args:
        how: a derivation with its options.
        budget: of the student, by the cost of the stage ``teacher``.
        way: share of the way to the budget, measured in ratios: with 1/2 and a budget of 25 % it is 50 %.
    """

    how: Ref
    budget: Budget
    way: float = 1.0


class Pruned(Structure):
    """A student made from an earlier stage's trained model by derivations, one after the other.

    In a recipe ``student: {model: {name: pruned, cuts: [{how: prune-blocks, flops: 70%}, {how: {name: prune,
    importance: activation}, flops: 50%}]}}``: depth first, then width. Every budget is of the cost of the teacher. Rows
    are those the student may see. Where the model is not the teacher itself, the teacher's outputs guide the
    derivations that ask for them. What comes out is one config with all edits; kdx builds it again by itself.

    Args:
        cuts: what is done, in order; each has ``how`` and one of ``params``, ``flops`` and ``latency``.
        of: the stage whose model is made smaller.
        inherit: whether the student starts from that model's weights; else they are drawn anew.

    Raises:
        PlanError: there is no cut, or one is not as described.

    Example:
        >>> Pruned([{"how": "prune", "flops": "50%"}]).cuts[0].budget
        Budget(kind='flops', value='50%')
    """

    def __init__(self, cuts: Sequence[Cut | Mapping[str, Any]], *, of: str = "teacher", inherit: bool = True) -> None:
        if isinstance(cuts, Mapping | str) or not cuts:
            raise PlanError(f"cuts must be a list, as [{{how: prune, flops: 50%}}]; got {cuts!r}")
        self.cuts = tuple(_cut(cut) for cut in cuts)
        self.of = of
        self.inherit = inherit

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pruned) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.of, len(self.cuts)))

    def __repr__(self) -> str:
        return f"Pruned({list(self.cuts)!r}, of={self.of!r}, inherit={self.inherit!r})"

    @property
    @override
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(("teacher", self.of)))

    @override
    def produce(self, finished: FinishedStages) -> Produced:
        """See :meth:`kdx.assistants.Structure.produce`."""
        teacher, model, base = finished.model("teacher"), finished.model(self.of), finished.ref(self.of).as_dict()
        example = finished.example.repeat(2, *[1] * (finished.example.dim() - 1))
        ((shape, _dtype),) = Contract.of(teacher, example).outputs
        sizes = {"num_classes": shape[-1], "input_shape": list(example.shape[1:])}
        data = StudentData(finished.batches("few"), task=finished.task, validation=finished.batches("validation"))
        for cut in self.cuts:
            way = kdx.make("student", cut.how)
            if self.of != "teacher" and hasattr(way, "guided_by"):
                way = way.guided_by(teacher)
            student = derive(model, example, how=way, base=base, shape=sizes, data=data, **_budget(cut, finished))
            assert student.config is not None
            model, base = student.model, {"name": "derived", "config": student.config.model_dump(mode="json")}
        return Produced(Ref.of(base), model.state_dict() if self.inherit else None)


def _cut(value: Cut | Mapping[str, Any]) -> Cut:
    if isinstance(value, Cut):
        return value
    if not isinstance(value, Mapping) or "how" not in value or (odd := value.keys() - {"how", *get_args(Kind)}):
        got = f"{sorted(odd)}" if isinstance(value, Mapping) and "how" in value else repr(value)
        raise PlanError(f"cuts: each must have how and one of params, flops and latency; got {got}")
    return Cut(Ref.of(value["how"], "how"), Budget.of(value, f"cut {value['how']!r}"))


def _budget(cut: Cut, finished: FinishedStages) -> dict[str, Any]:
    """The budget of a cut as an argument of :func:`kdx.students.derive`."""
    kind, ref = cut.budget.kind, finished.ref("teacher")
    match kind:
        case "params":
            whole: float = finished.parameters(ref)
        case "flops":
            whole = finished.flops(ref)
        case "latency":
            whole = measure_cost(finished.model("teacher"), finished.example).latency_ms
    amount = whole * (cut.budget.amount(whole) / whole) ** cut.way
    return {kind: f"{amount}ms" if kind == "latency" else int(amount)}
