"""``derive``: a student made from its teacher."""

from __future__ import annotations

import copy as copying
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdx import rng
from kdx.analysis.cost import Cost, measure_cost
from kdx.analysis.flops import count_flops
from kdx.analysis.stored import count_parameters
from kdx.batch import Batch
from kdx.capture import unwrap
from kdx.errors import RunExistsError, StudentError
from kdx.files import named
from kdx.modes import evaluating
from kdx.ref import Ref, RefLike
from kdx.registry import default_plugins
from kdx.students.config import StudentConfig, parse_config, read_config, write_config
from kdx.students.contract import Contract
from kdx.students.derivation import Derivation
from kdx.students.edit import Edit, Kept, Origin, Plan
from kdx.students.student_data import StudentData
from kdx.students.table import table
from kdx.students.target import Target, parse_target
from kdx.training.checkpoint import export_weights

__all__ = ["Derived", "derive", "inherit"]

FEW = 16
"""Students whose latency is measured one by one rather than searched."""


@dataclass
class Derived:
    """A student and how it came about.

    Args:
        model: the student.
        edit: the change of the structure that made it.
        origins: name of every parameter and buffer -> where it comes from.
        kept: what had to stay as it is, and why.
        config: what rebuilds it; None if ``base`` was not given.
        teacher: what it was derived from.
        example: inputs of one sample, for its costs.
    """

    model: nn.Module
    edit: Edit
    origins: dict[str, Origin]
    kept: list[Kept]
    config: StudentConfig | None
    teacher: nn.Module = field(repr=False)
    example: Any = field(repr=False)

    @functools.cached_property
    def costs(self) -> tuple[Cost, Cost]:
        """Of teacher and student for one sample, measured when first asked for."""
        return measure_cost(self.teacher, self.example), measure_cost(self.model, self.example)

    def table(self) -> str:
        """Costs of teacher and student, and where the student's weights come from."""
        return table(*self.costs, self.origins, self.kept)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        teacher, student = self.costs
        return {
            "teacher": teacher.as_dict(),
            "student": student.as_dict(),
            "edit": self.edit.model_dump(mode="json"),
            "weights": {name: asdict(origin) for name, origin in self.origins.items()},
            "kept": [asdict(item) for item in self.kept],
        }

    def save(self, path: str | Path, *, weights: bool = True, force: bool = False) -> list[Path]:
        """Writes the config, and the weights as safetensors beside it under the same name.

        Args:
            path: of the config; ``.json`` writes JSON, anything else YAML.
            weights: whether to write the weights.
            force: write over files that are there.

        Returns:
            The files written.

        Raises:
            RunExistsError: a file is there and ``force`` was not given; nothing is written.
            StudentError: it is not known how the teacher is built.
        """
        if self.config is None:
            raise StudentError(
                "to write a config, kdx must know how to build the teacher: pass base={'name': 'convnet', 'width': 24} "
                "for a model of the registry, or base={'target': 'package.module:function'} to derive()"
            )
        path = Path(path)
        files = [path, path.with_suffix(".safetensors")] if weights else [path]
        if path.suffix == ".safetensors":
            raise ValueError(f"path is the config's, its weights are written beside it as .safetensors; got {path}")
        if not force and (there := [file for file in files if file.exists()]):
            raise RunExistsError(f"{there[0]} exists already; --force (force=True) writes over it, --out takes another")
        with named(path.parent, "made"):
            path.parent.mkdir(parents=True, exist_ok=True)
        if weights:
            export_weights(self.model, files[1])
        write_config(self.config, path)
        return files


def derive(
    teacher: nn.Module,
    inputs: Any,
    *,
    how: RefLike | Derivation,
    params: str | float | None = None,
    flops: str | float | None = None,
    latency: str | float | None = None,
    base: Mapping[str, Any] | None = None,
    shape: Mapping[str, Any] | None = None,
    taps: Iterable[str] = (),
    data: StudentData | None = None,
) -> Derived:
    """Derives a smaller student from a teacher: the largest one within a budget.

    The teacher runs on the example to see which channels and blocks belong together; it is not changed. The student's
    weights are the teacher's, sliced or factorised where their shapes differ; all of them can be trained, also where
    the teacher is frozen.

    Args:
        teacher: a module on one device.
        inputs: an example of what it takes, see :class:`kdx.Batch`, two samples or more; the values do not matter.
        how: a derivation by name, ``width``, ``depth``, ``depthwise``, ``low-rank`` or a plugin's, by name and options,
            as ``{"name": "width", "importance": "l2"}``, or a :class:`kdx.students.Derivation`.
        params: the most parameters, as ``"25%"`` or ``0.25`` of the teacher's, ``60000`` or ``"60k"``.
        flops: the most operations per sample, likewise.
        latency: the longest median time of one sample on one thread, as ``"50%"`` or ``"2.5ms"``.
        base: how the teacher is built, to write a config: ``name`` of a registered model or ``target`` as
            ``package.module:callable``, and its options.
        shape: ``num_classes`` and ``input_shape`` that the base is built with.
        taps: taps of the teacher that the student must have.
        data: training rows and their task, for a derivation that looks at them; a recipe gives its own.

    Returns:
        The student with its config and the origin of its weights. Without a budget ``depthwise`` replaces all
        convolutions it can; the others of kdx need one.

    Raises:
        ValueError: no budget or several, fewer than two samples.
        UnknownNameError: there is no derivation of this name.
        CountError: the parameters or operations that the budget is for cannot be counted; it says why.
        StudentError: the budget cannot be met (the reachable range is named, and what stands in the way), or the
            student would not keep the inputs, outputs or taps of the teacher; or the derivation needs data and there
            is none.

    Example:
        >>> import torch
        >>> teacher = nn.Sequential(nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 2))
        >>> student = derive(teacher, torch.zeros(2, 3), how="width", params="50%")
        >>> student.model, torch.equal(student.model[0].weight, teacher[0].weight)
        (Sequential(
          (0): Linear(in_features=3, out_features=19, bias=True)
          (1): ReLU()
          (2): Linear(in_features=19, out_features=2, bias=True)
        ), False)
    """
    if isinstance(how, Derivation):
        way, name = how, type(how).__name__
    else:
        ref = Ref.of(how, "how")
        way, name = default_plugins().make("student", ref), ref.name
    if (rows := Batch(inputs).rows) < 2:
        raise ValueError(f"inputs must be an example of two samples or more, got {rows}: one alone hides what is fixed")
    target = _target(params, flops, latency)
    if target is None and way.needs_budget:
        raise ValueError(f"{name} needs a budget: params, flops or latency, as params='25%'")
    if way.needs_data and data is None:
        raise StudentError(
            f"{name} decides by training rows, and none were given: in Python pass data=kdx.students.StudentData("
            "loader, task=...) to derive(); a recipe (student: {model: {name: derived, how: ...}}) gives its own; "
            "kdx student make has none"
        )
    teacher = unwrap(teacher)
    contract = Contract.of(teacher, inputs, taps)
    example = _first(inputs, rows)
    with rng.isolated():  # structures are tried, with weights that are drawn and thrown away
        planning: Callable[..., Plan] = way.plan
        with evaluating(teacher):  # a derivation that runs it on data would move the statistics of BatchNorm
            plan = planning(teacher, inputs, data) if way.needs_data else planning(teacher, inputs)
        edit = plan.edit(0 if target is None else _largest(name, plan, teacher, target, example))
        if target is None and plan.settings == 1:
            raise StudentError(f"{name} changes nothing about {type(teacher).__name__}{_obstacles(plan)}")
        model = copying.deepcopy(teacher).requires_grad_()
        model.zero_grad()  # a copy has the teacher's gradients too
        special = edit.derive(model, inputs)
    contract.check(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    origins = {name: special.get(name) or Origin("copied", own, own) for name, own in shapes.items()}
    return Derived(model, edit, origins, plan.kept, _config(base, shape, edit), teacher, example)


def inherit(config: StudentConfig | Mapping[str, Any] | str | Path, teacher: nn.Module, inputs: Any) -> nn.Module:
    """The student of a config with the weights of a teacher: its edits, applied to a copy of the teacher.

    Args:
        config: see :func:`kdx.students.read_config`; the teacher is built as its base is.
        teacher: not changed.
        inputs: see :func:`derive`.

    Raises:
        StudentError: the teacher is not built as the config expects.
    """
    model = copying.deepcopy(unwrap(teacher)).requires_grad_()
    contract = Contract.of(model, inputs)
    with rng.isolated():
        for edit in parse_config(config).edits:
            edit.derive(model, inputs)
    contract.check(model)
    return model


def _target(params: Any, flops: Any, latency: Any) -> Target | None:
    given = {"params": params, "flops": flops, "latency": latency}
    chosen = [parse_target(kind, value) for kind, value in given.items() if value is not None]  # type: ignore[arg-type]
    if len(chosen) > 1:
        raise ValueError(f"give one budget: params, flops or latency; got {' and '.join(one.kind for one in chosen)}")
    return chosen[0] if chosen else None


def _largest(name: str, plan: Plan, teacher: nn.Module, target: Target, example: Any) -> int:
    """The place of the largest student within the budget.

    Parameters and operations rise with the place, so bisection finds it; latency need not (two thin layers may take
    longer than a thick one), so that a few students are all measured.
    """
    found: dict[int, float] = {}

    def within(place: int) -> bool:
        if place not in found:
            model = copying.deepcopy(teacher)
            plan.edit(place).build(model)
            found[place] = _cost(model, target, example)
        return found[place] <= budget

    whole = _cost(teacher, target, example)
    budget = target.budget(whole)
    if target.kind == "latency" and plan.settings <= FEW:
        fitting = [place for place in range(plan.settings) if within(place)]
    else:
        low, high = 0, plan.settings
        while within(0) and high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if within(middle) else (low, middle)
        fitting = [low] if within(0) else []
    if not fitting:
        least, most = min(found.values()), max(whole, *found.values())
        raise StudentError(
            f"{name} cannot bring {type(teacher).__name__} down to {_amount(target, budget)} "
            f"({budget / whole:.1%} of the teacher): it reaches {_amount(target, least)} to {_amount(target, most)}, "
            f"that is {least / whole:.1%} to {most / whole:.0%}{_obstacles(plan)}. Go further in another way, or "
            "derive from the result once more; standard layers in place of a module that is kept would help too"
        )
    return fitting[-1]


def _cost(model: nn.Module, target: Target, example: Any) -> float:
    match target.kind:
        case "params":
            return count_parameters(model)
        case "flops":
            return count_flops(model, example)
        case "latency":
            return measure_cost(model, example, repeats=30).latency_ms


def _amount(target: Target, value: float) -> str:
    return f"{value:.3g} ms" if target.kind == "latency" else f"{value:,.0f} {target.kind}"


def _obstacles(plan: Plan) -> str:
    if not plan.kept:
        return ""
    shown = "; ".join(f"{kept.module}: {kept.reason}" for kept in plan.kept[:3])
    return f" (kept as they are: {shown}{'; ...' if len(plan.kept) > 3 else ''})"


def _config(base: Mapping[str, Any] | None, shape: Mapping[str, Any] | None, edit: Edit) -> StudentConfig | None:
    if base is None:
        return None
    values = dict(base)
    earlier: list[Any] = []
    inner_shape: Mapping[str, Any] = {}
    if values.get("name") == "derived":
        inner = parse_config(values["config"])
        values, earlier, inner_shape = inner.base, list(inner.edits), inner.shape
    return read_config({"base": values, "shape": {**inner_shape, **(shape or {})}, "edits": [*earlier, edit]})


def _first(inputs: Any, rows: int) -> Any:
    """The first sample of an example."""
    if isinstance(inputs, Tensor):
        return inputs[:1] if inputs.dim() and inputs.shape[0] == rows else inputs
    if isinstance(inputs, Mapping):
        return {key: _first(value, rows) for key, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(_first(value, rows) for value in inputs)
    return inputs
