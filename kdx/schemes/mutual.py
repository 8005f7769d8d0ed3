"""Deep mutual learning: peers teach each other."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import Batch, Sight
from kdx.capture import Captured, Output, Taps
from kdx.features.operands import check_choice
from kdx.knowledge.base import Knowledge
from kdx.losses import LossTerm, Mean
from kdx.modes import evaluating, unchanged_buffers
from kdx.schemes.base import (
    KnowledgeTerms,
    Scheme,
    Task,
    components_in,
    naming,
    own_copies,
    setup_components,
)
from kdx.schemes.phase import Phase
from kdx.tasks.classification import cross_entropy

__all__ = ["Mutual", "Updates"]

Updates = Literal["simultaneous", "alternating"]


class Mutual(Scheme):
    """K peers learn from the labels and from each other; no gradient passes between them.

    Peer i: ``w_task * task(z_i, y) + sum_k w_k / (K-1) * sum_{j != i} knowledge_k(peer i, stop_gradient(peer j))``.
    With soft targets at ``temperature=1`` this is DML.

    With ``updates="simultaneous"`` all peers take one step on one pass. With ``"alternating"``, as the paper's
    algorithm has it, they are updated in turn for each batch and every peer learns from what those before it have
    become (the authors' code draws another batch for every turn, and adds the K - 1 divergences up where the paper and
    this take their mean): every peer is a phase of its own (:attr:`kdx.Scheme.phases`, named as the peer), in which the
    others only teach: no gradient, no graph, and their BatchNorm statistics stay. :func:`kdx.fit` takes care of it;
    :meth:`kdx.Scheme.only` shows a loop of one's own.

    Args:
        peers: at least two models, of any architectures; the first is *the* student. All are evaluated and exported, as
            ``peer0``, ``peer1``, ...
        task: see :class:`kdx.Scheme`; counted once per peer.
        knowledge: see :class:`kdx.Scheme`; every ordered pair of peers gets its own copy of a component, so adapters
            and stores are not shared.
        updates: ``"simultaneous"`` or ``"alternating"`` (K times the passes).
        peer_views: for each peer which inputs it sees in training, see :meth:`kdx.Batch.seen`; None: all the same.
        peer_outputs: for each peer what of its output the logits are, see ``output`` of :class:`kdx.Taps`; None: the
            usual ways for all.

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
        peer_views: Sequence[Sight] | None = None,
        peer_outputs: Sequence[Output] | None = None,
    ) -> None:
        super().__init__(task=task, knowledge=knowledge)
        if len(peers) < 2 or len({id(peer) for peer in peers}) < len(peers):
            raise ValueError(f"peers must be at least two different modules, got {len(peers)}")
        check_choice("updates", updates, get_args(Updates))
        if peer_views is not None and len(peer_views) != len(peers):
            raise ValueError(f"peer_views must name a view for each of the {len(peers)} peers, got {len(peer_views)}")
        self._sights = [None] * len(peers) if peer_views is None else list(peer_views)
        self.peers = nn.ModuleList(peers)
        self.updates: Updates = updates
        if peer_outputs is not None and len(peer_outputs) != len(peers):
            raise ValueError(f"peer_outputs must have one for each of the {len(peers)} peers, got {len(peer_outputs)}")
        outputs = peer_outputs or [None] * len(peers)
        self.taps = [Taps(peer, self.task_taps, output=output) for peer, output in zip(peers, outputs, strict=True)]
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
                    self.taps[learner].add(component.student_taps)
                    for teacher in [self.taps[int(source)]] if source.isdecimal() else self.taps:
                        teacher.add(component.teacher_taps)

    @override
    def output_of(self, student: str) -> Callable[[Any], Tensor] | None:
        return self.taps[list(self.students).index(student)].output

    def sources(self, learner: int, components: Mapping[str, Knowledge]) -> dict[str, Mapping[str, Knowledge]]:
        """Who teaches a peer, and what: the number of another peer, or a name that :meth:`answers` knows."""
        return {str(peer): components for peer in range(len(self.peers)) if peer != learner}

    def answers(self, captured: Sequence[Captured], batch: Batch) -> dict[str, Captured]:
        """The answers of every source to a batch, without graph."""
        return {str(peer): each.detach() for peer, each in enumerate(captured)}

    def view(self, peer: int, batch: Batch) -> Any:
        """The inputs that a peer sees."""
        return batch.seen(self._sights[peer] if self.training else None).inputs

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
            captured = [taps(self.view(peer, batch)) for peer, taps in enumerate(self.taps)]
        answers = self.answers(captured, batch)
        for learner, source, components in self._lessons():
            student, teacher = captured[learner], answers[source]
            setup_components(components, lambda s=student: s, lambda t=teacher: t)  # type: ignore[misc]

    @property
    @override
    def phases(self) -> tuple[Phase, ...]:
        if self.updates == "simultaneous":
            return super().phases
        return tuple(
            Phase(f"peer{peer}", functools.partial(self._learn, (peer,)), tuple(self._parameters_of(peer)))
            for peer in range(len(self.peers))
        )

    @override
    def terms(self, batch: Batch) -> Mapping[str, LossTerm]:
        return super().terms(batch) if self.updates == "alternating" else self._learn(range(len(self.peers)), batch)

    def _parameters_of(self, peer: int) -> Iterator[nn.Parameter]:
        parts = [self.peers[peer], *(lesson for key, lesson in self.knowledge.items() if key.startswith(f"{peer}<-"))]
        return (parameter for part in parts for parameter in part.parameters() if parameter.requires_grad)

    def _learn(self, learners: Sequence[int], batch: Batch) -> dict[str, Mean]:
        """The terms of some peers; the others only teach."""
        captured = [self._pass(peer, batch, learns=peer in learners) for peer in range(len(self.peers))]
        answers = self.answers(captured, batch)
        terms: dict[str, Mean] = {}
        for learner in learners:
            terms |= self.task_terms(captured[learner], batch, of=f"peer{learner}")
        for learner, source, components in self._lessons():
            if learner not in learners:
                continue
            share = 1 / (len(captured) - 1) if source.isdecimal() else 1.0
            for name, term in self.knowledge_terms(components, captured[learner], answers[source], batch).items():
                key = f"peer{learner}/{name}"
                mean = term.scaled(share)
                terms[key] = terms[key].plus(mean) if key in terms else mean
        return terms

    def _pass(self, peer: int, batch: Batch, *, learns: bool) -> Captured:
        inputs = self.view(peer, batch)
        if learns:
            return self.taps[peer](inputs)
        with torch.no_grad(), unchanged_buffers(self.peers[peer]):
            return self.taps[peer](inputs).detach()

    def _lessons(self) -> list[tuple[int, str, dict[str, Knowledge]]]:
        """Learner, source and components."""
        lessons = []
        for key, components in self.knowledge.items():
            learner, source = key.split("<-")
            lessons.append((int(learner), source, components_in(components)))
        return lessons
