"""Deep mutual learning: peers teach each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import Captured, Taps
from kdx.features.operands import check_choice
from kdx.knowledge.base import Knowledge
from kdx.losses import Losses, cross_entropy
from kdx.modes import evaluating, unchanged_buffers
from kdx.schemes.base import (
    KnowledgeTerms,
    Scheme,
    Task,
    check_ready,
    components_in,
    naming,
    own_copies,
    setup_components,
)

__all__ = ["Mutual", "Updates"]

Updates = Literal["simultaneous", "alternating"]


class Mutual(Scheme):
    """K peers learn from the labels and from each other; no gradient passes between them.

    Peer i: ``w_task * task(z_i, y) + sum_k w_k / (K-1) * sum_{j != i} knowledge_k(peer i, stop_gradient(peer j))``.
    With soft targets at ``temperature=1`` this is DML.

    With ``updates="simultaneous"`` all peers take one step on one pass. With ``"alternating"``, as the paper's
    algorithm has it, they are updated in turn for each batch and every peer learns from what those before it have
    become (the authors' code draws another batch for every turn, and adds the K - 1 divergences up where the paper and
    this take their mean): :attr:`phases` is K, and a call gives the losses of peer :attr:`phase` alone. The others then
    only teach: no gradient, no graph, and their BatchNorm statistics stay. :func:`kdx.fit` takes care of it; in a loop
    of one's own::

        for batch in loader:
            for mutual.phase in range(mutual.phases):
                mutual(batch).total.backward()
                optimizer.step()
                optimizer.zero_grad()  # in every phase, and to None: weight decay moves a gradient of zeros

    Args:
        peers: at least two models, of any architectures; the first is *the* student. All are evaluated and exported, as
            ``peer0``, ``peer1``, ...
        task: see :class:`kdx.Scheme`; counted once per peer.
        knowledge: see :class:`kdx.Scheme`; every ordered pair of peers gets its own copy of a component, so adapters
            and stores are not shared.
        updates: ``"simultaneous"`` or ``"alternating"`` (K times the passes).

    Raises:
        ValueError: fewer than two different peers, or another kind of updates.

    Paper: Zhang et al., Deep Mutual Learning, CVPR 2018, https://arxiv.org/abs/1706.00384; code:
    https://github.com/YingZhangDUT/Deep-Mutual-Learning.

    Example:
        >>> import torch, kdx
        >>> peers = [torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)]
        >>> mutual = kdx.Mutual(peers, knowledge={"kd": kdx.SoftTargets(temperature=1.0)})
        >>> sorted(mutual((torch.ones(4, 3), torch.zeros(4, dtype=torch.int64))).terms)
        ['peer0/kd', 'peer0/task', 'peer1/kd', 'peer1/task']
    """

    def __init__(
        self,
        peers: Sequence[nn.Module],
        *,
        task: Task = cross_entropy,
        knowledge: KnowledgeTerms | None = None,
        updates: Updates = "simultaneous",
    ) -> None:
        super().__init__(task=task, knowledge=knowledge)
        if len(peers) < 2 or len({id(peer) for peer in peers}) < len(peers):
            raise ValueError(f"peers must be at least two different modules, got {len(peers)}")
        check_choice("updates", updates, get_args(Updates))
        self.peers = nn.ModuleList(peers)
        self.updates: Updates = updates
        self.phases = len(peers) if updates == "alternating" else 1
        self._taps = [Taps(peer) for peer in peers]
        self.knowledge = nn.ModuleDict(
            {
                f"{learner}<-{source}": own_copies(components)
                for learner in range(len(peers))
                for source, components in self.sources(learner, self.components).items()
                if components
            }
        )
        for learner, source, lesson in self._lessons():
            for name, component in lesson.items():
                with naming(name):
                    self._taps[learner].add(component.student_taps)
                    for teacher in [self._taps[int(source)]] if source.isdecimal() else self._taps:
                        teacher.add(component.teacher_taps)

    def sources(self, learner: int, components: Mapping[str, Knowledge]) -> dict[str, Mapping[str, Knowledge]]:
        """Who teaches a peer, and what: the number of another peer, or a name that :meth:`answers` knows."""
        return {str(peer): components for peer in range(len(self.peers)) if peer != learner}

    def answers(self, captured: Sequence[Captured], batch: Batch) -> dict[str, Captured]:
        """What every source says about a batch, without graph."""
        return {str(peer): each.detach() for peer, each in enumerate(captured)}

    def view(self, peer: int, batch: Batch) -> Any:
        """The inputs that a peer sees."""
        return batch.inputs

    @property
    @override
    def students(self) -> dict[str, nn.Module]:
        return {f"peer{i}": peer for i, peer in enumerate(self.peers)}

    @override
    def setup(self, batch: Batch | Any) -> None:
        batch = Batch.of(batch)
        if self.ready:
            return
        with evaluating(*self.peers), torch.no_grad():
            captured = [taps(batch.inputs) for taps in self._taps]
        answers = self.answers(captured, batch)
        for learner, source, components in self._lessons():
            student, teacher = captured[learner], answers[source]
            setup_components(components.values(), lambda s=student: s, lambda t=teacher: t)  # type: ignore[misc]

    @override
    def forward(self, batch: Batch | Any) -> Losses:
        batch = Batch.of(batch)
        learners = range(len(self.peers)) if self.phases == 1 else (self.phase,)
        captured = [self._pass(peer, batch, learns=peer in learners) for peer in range(len(self.peers))]
        answers = self.answers(captured, batch)
        terms: dict[str, Tensor] = {}
        for learner in learners:
            if (task := self.task_term(captured[learner], batch)) is not None:
                terms[f"peer{learner}/task"] = task
        for learner, source, components in self._lessons():
            if learner not in learners:
                continue
            check_ready(components)
            share = 1 / (len(captured) - 1) if source.isdecimal() else 1.0
            for name, term in self.knowledge_terms(components, captured[learner], answers[source], batch).items():
                key = f"peer{learner}/{name}"
                terms[key] = terms[key] + share * term if key in terms else share * term
        return Losses.of(terms)

    def _pass(self, peer: int, batch: Batch, *, learns: bool) -> Captured:
        inputs = self.view(peer, batch)
        if learns:
            return self._taps[peer](inputs)
        with torch.no_grad(), unchanged_buffers(self.peers[peer]):
            return self._taps[peer](inputs).detach()

    def _lessons(self) -> list[tuple[int, str, dict[str, Knowledge]]]:
        """Learner, source and components."""
        lessons = []
        for key, components in self.knowledge.items():
            learner, source = key.split("<-")
            lessons.append((int(learner), source, components_in(components)))
        return lessons
