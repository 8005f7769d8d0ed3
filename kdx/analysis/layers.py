"""The layers of two models side by side: their cost, their similarity and possible pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from kdx.analysis.flops import Counted, counting_flops
from kdx.analysis.stored import count_parameters
from kdx.batch import Batch
from kdx.capture import Taps, call, clean_name, unwrap
from kdx.errors import CountError
from kdx.features.matching import Pairs, pair_by_depth, pair_by_similarity
from kdx.features.similarity import MinibatchCKA
from kdx.files import atomic_write
from kdx.modes import evaluating

__all__ = ["Comparison", "Layer", "compare_layers", "list_layers"]

MAX_LAYERS = 24
"""Number of layers of one model that still fit on a screen."""

NOTHING_OF_THEIR_OWN = (nn.Identity, nn.modules.dropout._DropoutNd)
"""Modules that pass their input on in evaluation mode: the layer before them is the one to tap."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One module of a model that can be tapped.

    Args:
        name: the tap.
        kind: class of the module.
        order: its place in the forward pass, from 0, by when it ends.
        shape: of its output for one sample.
        parameters: number of parameters, those of inner modules included; None if they cannot be counted.
        flops: floating point operations for one sample, inner modules included, as
            :func:`kdx.analysis.counting_flops` counts them; None if the model runs some that cannot be counted.
        depth: share of the model's operations that are done when this layer is, in [0, 1]; where they cannot be
            counted, of its layers.
    """

    name: str
    kind: str
    order: int
    shape: tuple[int, ...]
    parameters: int | None
    flops: int | None
    depth: float


@dataclass(frozen=True)
class Comparison:
    """Layers of a student and a teacher, how alike they are, and pairs to distil.

    Args:
        student: the student's layers in the order of its forward pass.
        teacher: the teacher's.
        cka: ``[students, teachers]``, linear CKA without bias.
        pairs: strategy -> pairs of indices; ``uniform``, ``relative`` (by :attr:`Layer.depth`) and ``cka``.
    """

    student: list[Layer]
    teacher: list[Layer]
    cka: Tensor
    pairs: dict[str, Pairs]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; pairs by name."""
        return {
            "student": [asdict(layer) for layer in self.student],
            "teacher": [asdict(layer) for layer in self.teacher],
            "cka": self.cka.tolist(),
            "pairs": {
                strategy: [[self.student[i].name, self.teacher[j].name] for i, j in pairs]
                for strategy, pairs in self.pairs.items()
            },
        }

    def table(self) -> str:
        """Both models' layers, then the proposed teacher layers of every student layer."""
        parts = []
        for title, layers in (("teacher", self.teacher), ("student", self.student)):
            rows = [
                [layer.name, layer.kind, *map(_text, (layer.shape, layer.parameters, layer.flops, layer.depth))]
                for layer in layers
            ]
            parts.append(_columns([title, "module", "shape", "parameters", "FLOPs", "depth"], rows))
        proposed = {strategy: dict(pairs) for strategy, pairs in self.pairs.items()}
        rows = []
        for i, layer in enumerate(self.student):
            best = proposed["cka"][i]
            names = [self.teacher[proposed[strategy][i]].name for strategy in ("uniform", "relative", "cka")]
            rows.append([layer.name, *names, f"{self.cka[i, best]:.2f}"])
        parts.append(_columns(["student layer", "uniform", "relative", "by CKA", "CKA"], rows))
        return "\n\n".join(parts)

    def draw(self, path: str | Path) -> None:
        """Writes a heat map of the CKA as an image; the pairs by CKA are marked."""
        rows, columns = self.cka.shape
        figure = Figure(figsize=(max(5.0, 2.5 + 0.28 * columns), 2.0 + 0.28 * rows), layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(self.cka.clamp(0, 1).numpy(), vmin=0, vmax=1, origin="lower", aspect="auto", cmap="magma")
        axes.set_xticks(range(columns), [layer.name for layer in self.teacher], rotation=90, fontsize=7)
        axes.set_yticks(range(rows), [layer.name for layer in self.student], fontsize=7)
        axes.set_xlabel("teacher layer")
        axes.set_ylabel("student layer")
        axes.set_title("linear CKA; a dot marks the teacher layer most like a student layer", fontsize=8)
        students, teachers = zip(*self.pairs["cka"], strict=True)
        axes.plot(teachers, students, "o", markersize=5, markerfacecolor="white", markeredgecolor="black")
        figure.colorbar(image, ax=axes)
        kind = Path(path).suffix[1:] or "png"
        atomic_write(Path(path), lambda temporary: figure.savefig(temporary, format=kind, dpi=120))


def list_layers(model: nn.Module, inputs: Any) -> list[Layer]:
    """The modules of a model that give a tensor ``[N, ...]`` with two to five dimensions, in the order they are done.

    Of modules that give the very same tensor (a block and its last part, what works in place and what it works on) the
    one that is done last stands for all; dropout and identities are left out. Nothing about the model changes.

    Args:
        model: any module.
        inputs: what the model takes, see :class:`kdx.Batch`.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> [(layer.name, layer.shape, layer.flops) for layer in list_layers(net, torch.zeros(5, 3))]
        [('0', (4,), 24), ('1', (4,), 0), ('2', (2,), 16)]
    """
    plain = unwrap(model)
    rows = Batch(inputs).rows
    found: list[tuple[str, nn.Module, Tensor, int]] = []

    def record(counter: Counted, name: str, module: nn.Module) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, given: Any, value: Any) -> None:
            if isinstance(module, NOTHING_OF_THEIR_OWN) and given and value is given[0]:
                return
            if isinstance(value, tuple | list):
                value = next((part for part in value if isinstance(part, Tensor)), None)
            if isinstance(value, Tensor) and value.dim() in (2, 3, 4, 5) and value.shape[0] == rows:
                found[:] = [item for item in found if item[2] is not value and item[0] != name]
                found.append((name, module, value, counter.get_total_flops()))

        return hook

    named = [(clean_name(name), module) for name, module in plain.named_modules() if name]
    with evaluating(model), torch.no_grad(), counting_flops() as counter:
        handles = [module.register_forward_hook(record(counter, name, module)) for name, module in named]
        try:
            call(model, inputs)
        finally:
            for handle in handles:
                handle.remove()
    total = 0 if counter.uncounted else counter.get_total_flops()
    by_module = counter.get_flop_counts()
    root = type(plain).__name__
    layers = []
    for order, (name, module, value, done) in enumerate(found):
        flops = None if counter.uncounted else sum(by_module.get(f"{root}.{name}", {}).values()) // rows
        depth = done / total if total else (order + 1) / len(found)
        shape = tuple(value.shape[1:])
        layers.append(Layer(name, type(module).__name__, order, shape, _parameters(module), flops, depth))
    return layers


def _parameters(module: nn.Module) -> int | None:
    try:
        return count_parameters(module)
    except CountError:
        return None


def compare_layers(
    teacher: nn.Module, student: nn.Module, batches: Iterable[Any], *, max_layers: int = MAX_LAYERS
) -> Comparison:
    """Compares all layers of two models on a few batches.

    Args:
        teacher: any model.
        student: another; both take the same inputs, on their own device.
        batches: what :meth:`kdx.Batch.of` reads, or inputs alone, at least 4 samples each; a few hundred samples in
            all give steady numbers.
        max_layers: where a model has more, only modules nested less deeply are taken.

    Raises:
        ValueError: no batches, or batches of fewer than 4 samples.

    Example:
        >>> teacher, student = (nn.Sequential(nn.Linear(3, w), nn.ReLU(), nn.Linear(w, 2)) for w in (8, 4))
        >>> compare_layers(teacher, student, [torch.randn(16, 3)]).pairs["relative"]
        [(0, 1), (1, 1), (2, 2)]
    """
    batches = [_inputs(batch) for batch in batches]
    if not batches:
        raise ValueError("batches is empty; give at least one batch of at least 4 samples")
    chosen = {}
    for name, model in (("teacher", teacher), ("student", student)):
        chosen[name] = _outer(list_layers(model, batches[0]), max_layers)
    taps = {
        name: Taps(model, [layer.name for layer in chosen[name]], output=_ignore)
        for name, model in (("teacher", teacher), ("student", student))
    }
    cka = MinibatchCKA(len(chosen["student"]), len(chosen["teacher"]))
    with evaluating(teacher, student), torch.no_grad():
        for inputs in batches:
            captured = {name: one(inputs) for name, one in taps.items()}
            features = {name: [captured[name][layer.name] for layer in layers] for name, layers in chosen.items()}
            cka.update(features["student"], features["teacher"])
    matrix = cka.compute()
    depths = [layer.depth for layer in chosen["student"]], [layer.depth for layer in chosen["teacher"]]
    pairs = {
        "uniform": pair_by_depth("uniform", *matrix.shape),
        "relative": pair_by_depth("relative", *matrix.shape, positions=depths),
        "cka": pair_by_similarity(matrix),
    }
    return Comparison(chosen["student"], chosen["teacher"], matrix, pairs)


def _inputs(batch: Any) -> Any:
    return batch if isinstance(batch, Tensor) else Batch.of(batch).inputs


def _ignore(_result: Any) -> Tensor:
    return torch.empty(0)


def _outer(layers: list[Layer], limit: int) -> list[Layer]:
    """The layers of all levels of nesting that fit; at least the outermost."""
    if not layers:
        raise ValueError("a model has no module that gives a tensor [N, ...] of two to five dimensions to compare")
    deepest = max(layer.name.count(".") for layer in layers)
    for level in range(deepest, -1, -1):
        kept = [layer for layer in layers if layer.name.count(".") <= level]
        if 0 < len(kept) <= limit or (kept and level == min(layer.name.count(".") for layer in layers)):
            return kept
    return layers


def _text(value: object) -> str:
    if value is None:
        return "not counted"
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return f"{value:.0%}" if isinstance(value, float) else f"{value:,}"


def _columns(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]]
    return "\n".join(line.rstrip() for line in lines)
