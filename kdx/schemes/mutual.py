"""Deep mutual learning: peers teach each other."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

from torch import nn
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import Taps
from kdx.knowledge.base import Knowledge
from kdx.losses import Losses, cross_entropy
from kdx.schemes.base import KnowledgeTerms, Scheme, Task, check_ready, evaluating, naming, setup_components

__all__ = ["Mutual"]


class Mutual(Scheme):
    """K peers learn from the labels and from each other at once; updates are simultaneous.

    Peer i: ``w_task * task(z_i, y) + sum_k w_k / (K-1) * sum_{j != i} knowledge_k(peer i, stop_gradient(peer j))``.
    With soft targets at ``temperature=1`` this is DML. No gradient passes between peers.

    Args:
        peers: at least two models; the first is the one that is exported as the student.
        task: see :class:`kdx.Scheme`; counted once per peer.
        knowledge: see :class:`kdx.Scheme`; every ordered pair of peers gets its own copy of a component, so adapters
            and stores are not shared.

    Paper: Zhang et al., Deep Mutual Learning, CVPR 2018, https://arxiv.org/abs/1706.00384.

    Example:
        >>> import torch, kdx
        >>> peers = [torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)]
        >>> mutual = kdx.Mutual(peers, knowledge={"kd": kdx.SoftTargets(temperature=1.0)})
        >>> sorted(mutual((torch.ones(4, 3), torch.zeros(4, dtype=torch.int64))).terms)
        ['peer0/kd', 'peer0/task', 'peer1/kd', 'peer1/task']
    """

    def __init__(
        self, peers: Sequence[nn.Module], *, task: Task = cross_entropy, knowledge: KnowledgeTerms | None = None
    ) -> None:
        super().__init__(task=task, knowledge=knowledge)
        if len(peers) < 2 or len({id(peer) for peer in peers}) < len(peers):
            raise ValueError(f"peers must be at least two different modules, got {len(peers)}")
        self.peers = nn.ModuleList(peers)
        self._taps = [Taps(peer) for peer in peers]
        self.knowledge = nn.ModuleDict(
            {
                f"{learner}<-{source}": nn.ModuleDict(
                    {name: copy.deepcopy(component) for name, component in self.components.items()}
                )
                for learner in range(len(peers))
                for source in range(len(peers))
                if learner != source
            }
        )
        for learner, source, components in self._pairs():
            for name, component in components.items():
                with naming(name):
                    self._taps[learner].add(component.student_taps)
                    self._taps[source].add(component.teacher_taps)

    @property
    @override
    def students(self) -> dict[str, nn.Module]:
        return {f"peer{i}": peer for i, peer in enumerate(self.peers)}

    @override
    def setup(self, batch: Batch | Any) -> None:
        batch = Batch.of(batch)
        with evaluating(*self.peers):
            for learner, source, components in self._pairs():
                setup_components(
                    components.values(),
                    functools.partial(self._taps[learner], batch.inputs),
                    functools.partial(self._taps[source], batch.inputs),
                )

    @override
    def forward(self, batch: Batch | Any) -> Losses:
        batch = Batch.of(batch)
        captured = [taps(batch.inputs) for taps in self._taps]
        terms = {}
        for learner, student in enumerate(captured):
            if (task := self.task_term(student, batch)) is not None:
                terms[f"peer{learner}/task"] = task
        share = 1 / (len(captured) - 1)
        for learner, source, components in self._pairs():
            check_ready(components)
            found = self.knowledge_terms(components, captured[learner], captured[source].detach(), batch)
            for name, term in found.items():
                key = f"peer{learner}/{name}"
                terms[key] = terms[key] + share * term if key in terms else share * term
        return Losses.of(terms)

    def _pairs(self) -> list[tuple[int, int, dict[str, Knowledge]]]:
        pairs = []
        for key, components in self.knowledge.items():
            assert isinstance(components, nn.ModuleDict)  # built in __init__
            learner, source = key.split("<-")
            found = {name: part for name, part in components.items() if isinstance(part, Knowledge)}
            pairs.append((int(learner), int(source), found))
        return pairs
