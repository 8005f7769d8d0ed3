"""A supernet as a plan: train it, choose a sub-network on held-out rows, distil that."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from typing_extensions import override

from kdx import Assistant, Ref, Stage
from kdx.assistants import FinishedStages, Produced, Structure
from kdx.students import Contract, StudentConfig
from kdx_search.best import best_choice
from kdx_search.calibration import recalibrate
from kdx_search.space import Choice, Space
from kdx_search.sub_network import SubNetwork

__all__ = ["FromSupernet", "SubNetworkOf"]


class FromSupernet(Assistant):
    """Trains the recipe's student as a supernet, chooses the best of its sub-networks within a budget, distils it.

    Stage ``supernet`` trains all sub-networks of the student's model at once under the scheme ``supernet``
    (:class:`kdx_search.Supernet`) with the recipe's teacher and knowledge. Then sub-networks are judged by the metric
    of the task on the validation rows, their norms measured anew on training rows, and stage ``distilled`` trains the
    best one under the recipe's scheme, from the supernet's weights or from new ones. The test rows play no part in it.

    Args:
        params: the most parameters, as ``25%`` of the student's model, or ``60k``.
        flops: the most operations of one sample, likewise.
        widths: shares of its channels that a group can have.
        depth: whether blocks can be left out.
        kernels: whether windows of convolutions can be smaller.
        keep: names of dimensions that are left as they are, globs allowed.
        samples: sub-networks drawn at random in every step.
        epochs: of the supernet, those of the recipe by default.
        evaluations: sub-networks that are judged.
        strategy: ``"evolution"``, or ``"random"``, see :func:`kdx_search.best_choice`.
        calibration: batches of training rows on which norms are measured anew.
        inherit: whether the chosen one starts from the supernet's weights; else they are drawn anew.
        seed: of all that is drawn.

    Raises:
        StudentError: while running: nothing of the model can be chosen, or no sub-network is within the budget.

    Paper: Cai et al., Once-for-All, ICLR 2020, https://arxiv.org/abs/1908.09791.

    Example:
        >>> plan = FromSupernet(flops="50%").plan(Ref("convnet", width=24), Ref("convnet", width=16))
        >>> [(stage.name, stage.role, stage.needs) for stage in plan]
        [('supernet', 'assistant', ('teacher',)), ('distilled', 'distilled', ('teacher', 'supernet'))]
    """

    links = 1

    def __init__(
        self,
        *,
        params: str | float | None = None,
        flops: str | float | None = None,
        widths: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
        depth: bool = True,
        kernels: bool = True,
        keep: Sequence[str] = (),
        samples: int = 2,
        epochs: int | None = None,
        evaluations: int = 64,
        strategy: Literal["evolution", "random"] = "evolution",
        calibration: int = 20,
        inherit: bool = True,
        seed: int = 0,
    ) -> None:
        if params is None and flops is None:
            raise ValueError("give a budget, params or flops, as flops='50%'; without one the largest would be chosen")
        self.space = {"widths": tuple(widths), "depth": depth, "kernels": kernels, "keep": tuple(keep)}
        self.samples, self.epochs, self.seed = samples, epochs, seed
        found = {"params": params, "flops": flops, "evaluations": evaluations, "strategy": strategy, "seed": seed}
        self.search: dict[str, Any] = found
        self.calibration, self.inherit = calibration, inherit

    @override
    def plan(self, teacher: Ref, student: Ref) -> list[Stage]:
        options = {name: list(value) if isinstance(value, tuple) else value for name, value in self.space.items()}
        budget = {name: self.search[name] for name in ("params", "flops") if self.search[name] is not None}
        scheme = Ref("supernet", samples=self.samples, seed=self.seed, **budget, **options)  # refused before training
        train = {} if self.epochs is None else {"epochs": self.epochs}
        chosen = SubNetworkOf(
            "supernet", tuple(self.space.items()), tuple(self.search.items()), self.calibration, self.inherit
        )
        return [
            Stage("supernet", "assistant", student, ("teacher",), scheme=scheme, train=train),
            Stage("distilled", "distilled", chosen, ("teacher",)),
        ]


@dataclass(frozen=True, slots=True)
class SubNetworkOf(Structure):
    """The sub-network of a trained supernet that is judged best within a budget.

    Args:
        stage: that trained the supernet.
        space: options of :meth:`kdx_search.Space.of`.
        search: options of :func:`kdx_search.best_choice`.
        calibration: batches of training rows on which norms are measured anew.
        inherit: whether it starts from the supernet's weights.
    """

    stage: str
    space: tuple[tuple[str, Any], ...]
    search: tuple[tuple[str, Any], ...]
    calibration: int
    inherit: bool

    @property
    @override
    def needs(self) -> tuple[str, ...]:
        return (self.stage,)

    @override
    def produce(self, finished: FinishedStages) -> Produced:
        whole = finished.model(self.stage).eval()
        example = torch.cat([finished.example] * 2)
        space = Space.of(whole, example, **dict(self.space))
        rows = list(itertools.islice(finished.batches("few"), self.calibration))
        sign = 1.0 if finished.task.higher_is_better else -1.0

        def part(choice: Choice) -> SubNetwork:
            network = SubNetwork(space, choice)
            recalibrate(network, rows)
            return network

        found = best_choice(
            space, lambda choice: sign * finished.evaluate(part(choice))[finished.metric], **dict(self.search)
        )
        ((shape, _dtype),) = Contract.of(whole, example).outputs
        sizes = {"num_classes": shape[-1], "input_shape": list(example.shape[1:])}
        base = finished.ref(self.stage).as_dict()
        config = StudentConfig(base=base, shape=sizes, edits=space.edits(found.best.choice))
        weights = part(found.best.choice).extract().state_dict() if self.inherit else None
        return Produced(Ref("derived", config=config.model_dump(mode="json")), weights)
