"""Blocks of all sub-networks trained one by one, each to do what the teacher's block does."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from kdx import Batch, Captured, Mean, Offline
from kdx.students import StudentError, record_calls
from kdx.teachers import Teacher
from kdx_search.space import Choice, Space
from kdx_search.sub_network import SubNetwork

__all__ = ["BlockWise"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_READY = 64


class BlockWise(Offline):
    """Trains every block of a student's sub-networks apart from the others: to make the teacher's output of its input.

    A block of the student gets what the teacher's block gets, and learns to give what that gives; nothing passes from
    one block to the next, and no label is used. Loss of a block: ``mean((f(x_t) - y_t)^2) / var(y_t)``, ``x_t`` and
    ``y_t`` what the teacher's block takes and gives; the total is the sum over blocks, over the largest sub-network,
    the smallest and ``samples`` drawn at random. Where a block takes or gives another number of channels than the
    teacher's, or one that can be chosen, a linear map without bias along the channels is learned with it and cut like
    the rest; maps of another size are averaged to the student's.

    The losses of the blocks of a sub-network, summed, rank it: :meth:`rate`. The student's classifier is not trained,
    so the student itself is of no use afterwards.

    Args:
        student: the largest sub-network.
        teacher: see :class:`kdx.Offline`.
        blocks: module of the student -> module of the teacher, from the input on; each takes one tensor and gives one,
            ``[N, C]``, tokens ``[N, L, C]`` or maps ``[N, C, ...]``. Names alone are the same in both.
        widths: see :meth:`kdx_search.Space.of`.
        depth: whether blocks can be left out.
        kernels: whether windows of convolutions can be smaller.
        keep: names of dimensions that are left as they are, globs allowed.
        samples: sub-networks drawn at random in every step.
        seed: of the sub-networks drawn.

    Raises:
        ValueError: no block, or a number of samples below 0.
        CaptureError: the teacher has no such module.
        StudentError: in :meth:`setup`: the student has no such module, or it gives no tensor; see also
            :meth:`kdx_search.Space.of`.

    Paper: Li et al., Block-Wisely Supervised Neural Architecture Search with Knowledge Distillation (DNA), CVPR 2020,
    https://arxiv.org/abs/1911.13053; code: https://github.com/changlin31/DNA, which divides by the variance and
    rates by the sum too. There every block has the teacher's widths, and one path is drawn in a step.

    Example:
        >>> import kdx, torch
        >>> student, teacher = (kdx.make("model", "convnet", width=width, stages=2) for width in (8, 16))
        >>> scheme = BlockWise(student, teacher, blocks=["stage1", "stage2"], samples=0)
        >>> batch = torch.randn(4, 1, 28, 28), None
        >>> scheme.setup(batch)
        >>> list(scheme(batch).terms)
        ['largest/stage1', 'largest/stage2', 'smallest/stage1', 'smallest/stage2']
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Teacher,
        *,
        blocks: Mapping[str, str] | Sequence[str],
        widths: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
        depth: bool = True,
        kernels: bool = True,
        keep: Sequence[str] = (),
        samples: int = 2,
        seed: int = 0,
    ) -> None:
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 0:
            raise ValueError(f"samples must be a whole number of sub-networks, 0 or more; got {samples!r}")
        super().__init__(student, teacher, task=None)
        self.blocks = dict(blocks) if isinstance(blocks, Mapping) else {name: name for name in blocks}
        if not self.blocks:
            raise ValueError("blocks must name modules of the student, as ['stage1', 'stage2']; got none")
        self.teacher.tap([tap for name in self.blocks.values() for tap in (f"{name}:input", name)])
        self.samples, self.seed = samples, seed
        self.space: Space | None = None
        self.maps = nn.ModuleDict()
        self._options: dict[str, Any] = {"widths": widths, "depth": depth, "kernels": kernels, "keep": keep}
        self._step = 0
        self._kept: dict[tuple[int, ...], _Part] = {}

    @property
    @override
    def ready(self) -> bool:
        return self.space is not None and super().ready

    @override
    def check_ready(self) -> None:
        if self.space is None:
            raise RuntimeError(
                "the sub-networks of the student are found from a batch: call scheme.setup(batch) once, before the "
                "first step (kdx.fit does)"
            )
        super().check_ready()

    @override
    def setup(self, batch: Batch | Any) -> None:
        if self.space is not None:
            return
        batch = Batch.of(batch)
        few = batch.at(slice(0, 2))
        calls = record_calls(self.student, few.inputs)
        given = self.teacher(few)
        for number, (name, theirs) in enumerate(self.blocks.items()):
            call = calls.get(name)
            if call is None or call.count != 1 or call.takes is None or call.gives is None:
                raise StudentError(
                    f"block {name!r} of the student must be a module that runs once and gives one tensor; name another "
                    f"of {', '.join(list(calls)[1:6])}, ..."
                )
            x, y = given[f"{theirs}:input"], given[theirs]
            self.maps[f"into{number}"] = _map(x, call.takes, by_batch=number == 0)
            self.maps[f"out{number}"] = _map(y, call.gives, by_batch=False, back=True)
        self.maps.to(next(self.student.parameters()).device)
        self.space = Space.of(self.student, few.inputs, **self._options)

    @override
    def advance(self, step: int, total: int) -> None:
        super().advance(step, total)
        self._step = step

    @override
    def terms(self, batch: Batch) -> dict[str, Mean]:
        teacher = self.teacher(batch)
        return {
            f"{name}/{block}": Mean(loss, batch.rows)
            for name, choice in self.choices(self._step).items()
            for block, loss in self._losses(choice, teacher).items()
        }

    def choices(self, step: int) -> dict[str, dict[str, int]]:
        """The sub-networks of a step: name -> choice.

        Args:
            step: of the optimizer, from 0.
        """
        assert self.space is not None, "setup finds the sub-networks"
        drawn = random.Random(f"{self.seed} {step}")
        found = {"largest": self.space.largest, "smallest": self.space.smallest}
        return found | {f"random{k}": self.space.sample(drawn) for k in range(1, self.samples + 1)}

    def rate(self, choice: Choice, batches: Iterable[Any]) -> dict[str, float]:
        """The mean loss of every block of a sub-network; their sum ranks it, less is better.

        Norms use the statistics of each batch, everything else runs as in evaluation.

        Args:
            choice: the sub-network.
            batches: as :meth:`kdx.Batch.of` reads them, held-out rows at best; nothing is asked of their targets.

        Raises:
            RuntimeError: :meth:`setup` was not called.
            ValueError: there is no batch.
        """
        self.check_ready()
        modes = [(module, module.training) for module in self.student.modules()]
        device = next(self.student.parameters()).device
        sums: dict[str, float] = dict.fromkeys(self.blocks, 0.0)
        rows = 0
        try:
            for module, _ in modes:
                module.training = isinstance(module, _NORMS)
            with torch.no_grad():
                for item in batches:
                    batch = Batch.of(item).to(device)
                    for name, loss in self._losses(choice, self.teacher(batch)).items():
                        sums[name] += float(loss) * batch.rows
                    rows += batch.rows
        finally:
            for module, mode in modes:
                module.training = mode
        if not rows:
            raise ValueError("batches: expected at least one, to rate the sub-network on; got none")
        return {name: value / rows for name, value in sums.items()}

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # else each new sub-network would be compiled
    def _losses(self, choice: Choice, teacher: Captured) -> dict[str, Tensor]:
        part = self._part(choice)
        found = {}
        for number, (name, theirs) in enumerate(self.blocks.items()):
            takes, gives = part.shapes[name]
            x = _fitted(_mixed(self.maps[f"into{number}"], teacher[f"{theirs}:input"], made=_channels(takes)), takes)
            y = part.network.run(name, x)
            target = _fitted(teacher[theirs], gives)
            made = _mixed(self.maps[f"out{number}"], y, read=_channels(gives))
            found[name] = F.mse_loss(made, target) / target.var().clamp_min(torch.finfo(target.dtype).tiny)
        return found

    def _part(self, choice: Choice) -> _Part:
        assert self.space is not None
        key = tuple(self.space.canonical(choice).values())
        if key not in self._kept:
            if len(self._kept) >= _READY:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = _Part(SubNetwork(self.space, choice, self.student), self.blocks, self.space.inputs)
        return self._kept[key]


class _Part:
    """A sub-network, and the shapes of what its blocks take and give."""

    def __init__(self, network: SubNetwork, blocks: Iterable[str], inputs: Any) -> None:
        self.network = network
        with torch.random.fork_rng(devices=[]):
            calls = record_calls(network.extract(), inputs)
        self.shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        for name in blocks:
            call = calls.get(name)
            if call is None or call.takes is None or call.gives is None:
                raise StudentError(
                    f"a sub-network leaves out block {name!r}, so it cannot be compared; give the module around it, or "
                    "keep=['depth:*']"
                )
            self.shapes[name] = call.takes, call.gives


def _axis(shape: Sequence[int]) -> int:
    """The axis of the channels: the last of ``[N, C]`` and ``[N, L, C]``, else axis 1."""
    return len(shape) - 1 if len(shape) <= 3 else 1


def _channels(shape: Sequence[int]) -> int:
    return shape[_axis(shape)]


def _map(teacher: Tensor, student: Sequence[int], *, by_batch: bool, back: bool = False) -> nn.Module:
    """A linear map between the channels of the teacher and the most that the student's block has."""
    theirs, ours = _channels(teacher.shape), _channels(student)
    if by_batch and theirs == ours:
        return nn.Identity()  # the inputs of the models
    return nn.Linear(ours, theirs, bias=False) if back else nn.Linear(theirs, ours, bias=False)


def _mixed(between: nn.Module, x: Tensor, *, made: int | None = None, read: int | None = None) -> Tensor:
    """The channels of ``x`` mapped by the part of a map that makes, or reads, the first channels."""
    if not isinstance(between, nn.Linear):
        return x
    axis = _axis(x.shape)
    return F.linear(x.movedim(axis, -1), between.weight[:made, :read]).movedim(-1, axis)


def _fitted(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Maps averaged to the size of others."""
    sizes = tuple(shape[2:])
    if x.dim() <= 3 or x.shape[2:] == sizes:
        return x
    pools: Any = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
    fitted: Tensor = pools[len(sizes)](x, sizes)
    return fitted
