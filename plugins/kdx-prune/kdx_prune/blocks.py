"""Students without the blocks that the network needs least."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx import Batch, Taps
from kdx.errors import StudentError
from kdx.features import MinibatchCKA
from kdx.students import Depth, Derivation, Kept, Plan, StudentData, block_sequences
from kdx_prune.gates import evaluating
from kdx_prune.rows import first

__all__ = ["ByBlocks", "Criterion"]

Criterion = Literal["cka", "influence"]
Block = tuple[str, ...]


class ByBlocks(Derivation):
    """Fewer blocks, those gone first without which the network stays most like its teacher.

    Blocks are those that ``depth`` can leave out: children of an ``nn.Sequential`` or ``nn.ModuleList`` that give the
    shape they take. The edit is that of ``depth``, so that the student is built again from its config by kdx alone.

    - ``cka``: every block is left out in turn and what the network then gives is compared with the teacher by linear
      CKA; the block whose absence is seen least goes, and the same is done with what remains (Pons et al. 2024,
      https://arxiv.org/abs/2405.17081).
    - ``influence``: one minus the mean cosine between what a block takes and what it gives, over rows; the lowest goes.
      One pass over the rows (block importance, Muralidharan et al. 2024, https://arxiv.org/abs/2407.14679).

    Args:
        criterion: ``cka`` or ``influence``.
        tap: for ``cka``, where student and teacher are compared, as :class:`kdx.Taps` reads it; it must be in both.
        rows: training rows that are looked at, at most; no label is needed.

    Raises:
        ValueError: an option out of range.

    Example:
        >>> import torch, kdx
        >>> data = kdx.students.StudentData(kdx.testing.toy_batches(2), task=kdx.make("task", "classification"))
        >>> layers = [torch.nn.Conv2d(1, 8, 3), *(torch.nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))]
        >>> teacher = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(288, 3))
        >>> how, images = ByBlocks(), torch.zeros(2, 1, 8, 8)
        >>> len(kdx.students.derive(teacher, images, how=how, params="85%", data=data).edit.removed)
        1
    """

    edit = Depth

    def __init__(self, *, criterion: Criterion = "cka", tap: str = "logits", rows: int = 256) -> None:
        if criterion not in get_args(Criterion):
            raise ValueError(f"criterion must be one of {', '.join(get_args(Criterion))}; got {criterion!r}")
        if rows < 4:
            raise ValueError(f"rows must be at least 4; got {rows}")
        self.criterion: Criterion = criterion
        self.tap = tap
        self.rows = rows
        self.needs_data = True
        self.teacher: nn.Module | None = None

    def guided_by(self, teacher: nn.Module) -> ByBlocks:
        """The same, compared with a teacher; without one the network that loses blocks is its own.

        Args:
            teacher: a network that has the tap.
        """
        guided = copy.copy(self)
        guided.teacher = teacher
        return guided

    @override
    def plan(self, model: nn.Module, inputs: Any, data: StudentData | None = None) -> Plan:
        """See :meth:`kdx.students.Derivation.plan`."""
        if data is None:
            raise StudentError("which blocks are needed is found by running rows through the network; give data")
        sequences = [([tuple(block) for block in blocks], least) for blocks, least in block_sequences(model, inputs)]
        batches = first(data, self.rows, model)
        kept: list[Kept] = []
        if not sequences:
            reason = "no child of an nn.Sequential or nn.ModuleList gives the shape it takes, so none can be left out"
            kept.append(Kept(type(model).__name__, reason))
        order = (self._by_cka if self.criterion == "cka" else self._by_influence)(model, sequences, batches, kept)
        place_of = {name: place for place, (name, _) in enumerate(model.named_modules())}

        def edit(place: int) -> Depth:
            gone = [name for block in order[: len(order) - place] for name in block]
            return Depth(removed=sorted(gone, key=place_of.__getitem__))

        return Plan(len(order) + 1, edit, kept)

    def _by_influence(
        self, model: nn.Module, sequences: _Sequences, batches: Sequence[Batch], kept: list[Kept]
    ) -> list[Block]:
        """Blocks in the order in which they go, as far as they may."""
        blocks = [block for found, _ in sequences for block in found]
        if not blocks:
            return []
        taps = Taps(model, [tap for block in blocks for tap in (f"{block[0]}:input", block[-1])], output=_none)
        cosine, rows = torch.zeros(len(blocks), dtype=torch.float64), 0
        with evaluating(model), torch.no_grad():
            for batch in batches:
                seen = taps(batch.inputs)
                for place, block in enumerate(blocks):
                    pair = (seen[f"{block[0]}:input"].flatten(1), seen[block[-1]].flatten(1))
                    cosine[place] += torch.cosine_similarity(*pair, dim=1).double().sum().cpu()
                rows += batch.rows
        ranked = sorted(zip((1 - cosine / rows).tolist(), blocks, strict=True), key=lambda entry: entry[0])
        spare = {block: number for number, (found, _) in enumerate(sequences) for block in found}
        left = [len(found) - least for found, least in sequences]
        order = []
        for _, block in ranked:
            if left[spare[block]]:
                left[spare[block]] -= 1
                order.append(block)
        return order

    def _by_cka(
        self, model: nn.Module, sequences: _Sequences, batches: Sequence[Batch], kept: list[Kept]
    ) -> list[Block]:
        """The same, one after the other, each with those before it gone."""
        enough = [batch for batch in batches if batch.rows >= 4]
        if not enough:
            raise StudentError("CKA needs batches of at least 4 rows; use larger batches, or criterion: influence")
        teacher = model if self.teacher is None else self.teacher
        taught = [self._features(teacher, batch) for batch in enough]
        left = [(list(found), least) for found, least in sequences]
        order: list[Block] = []
        stuck: set[Block] = set()
        while True:
            gone = [name for block in order for name in block]
            best: tuple[float, int, Block] | None = None
            for number, (found, least) in enumerate(left):
                for block in found if len(found) > least else ():
                    if block in stuck:
                        continue
                    try:
                        alike = self._alike(model, [*gone, *block], enough, taught)
                    except Exception as error:  # the code of a model may count its blocks
                        stuck.add(block)
                        kept.append(Kept(", ".join(block), f"the network does not run without it ({error})"))
                        continue
                    if best is None or alike >= best[0]:  # of equal ones the last
                        best = alike, number, block
            if best is None:
                return order
            left[best[1]][0].remove(best[2])
            order.append(best[2])

    def _alike(self, model: nn.Module, gone: list[str], batches: Sequence[Batch], taught: Sequence[Tensor]) -> float:
        shorter = copy.deepcopy(model)
        Depth(removed=gone).build(shorter)
        cka = MinibatchCKA(1, 1)
        for batch, feature in zip(batches, taught, strict=True):
            cka.update([self._features(shorter, batch)], [feature])
        return cka.compute().item()

    def _features(self, model: nn.Module, batch: Batch) -> Tensor:
        with evaluating(model), torch.no_grad():
            return Taps(model, (self.tap,), output=None if self.tap == "logits" else _none)(batch.inputs)[self.tap]


_Sequences = Sequence[tuple[list[Block], int]]


def _none(_: Any) -> Tensor:
    """Stands for outputs that are not looked at."""
    return torch.empty(0)
