"""KDCL: peers learn from the ensemble of what each says about its own view of the images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import IGNORE, Batch
from kdx.capture import LOGITS, Captured, Output
from kdx.class_numbers import check_class_numbers
from kdx.datasets.augment import ShiftFlip
from kdx.features.operands import check_choice, check_same_outputs
from kdx.knowledge.base import Knowledge
from kdx.knowledge.soft_targets import SoftTargets
from kdx.responses import class_rows, of_class_rows
from kdx.sample_index import check_index
from kdx.schemes.base import KnowledgeTerms, Task
from kdx.schemes.mutual import Mutual
from kdx.tasks.classification import cross_entropy

__all__ = ["KDCL", "linear_ensemble", "min_logit_ensemble", "naive_ensemble"]

Rule = Literal["naive", "linear", "min-logit"]
ROUNDS, RATES = 20, 12


class KDCL(Mutual):
    """K peers, each with its own view of the same images, learn from the labels and from their ensemble.

    Peer i: ``w task(z_i, y) + sum_k w_k knowledge_k(peer i, stop_gradient(ensemble))``; by default soft targets at
    T = 2 with weight 1. The ensemble's logits are made from all peers' by ``ensemble``:

    - ``"naive"``: in each row those of the peer with the smallest cross-entropy, :func:`naive_ensemble`;
    - ``"linear"``: ``sum_i a_i z_i`` with the convex a of the smallest cross-entropy, :func:`linear_ensemble`;
    - ``"min-logit"``: for each class the smallest logit relative to the label's, :func:`min_logit_ensemble`.

    T = 2 and weight 1 are the paper's for CIFAR-100. These compare with labels. In a row without one the ensemble is
    the mean of the logits. The paper's fourth rule, weights from the inverse of the peers' error correlations on
    held-out rows, once per epoch, is not offered. A component that reads layers has no ensemble to read; between it
    every peer learns from each other one, as in :class:`kdx.Mutual`.

    Each view is a shift and mirror image (:class:`kdx.datasets.ShiftFlip`) drawn by peer, epoch and ``batch.index``
    alone; leave the data set's own augmentation out then, or it comes first. In evaluation mode there are no views.

    Args:
        peers: at least two models, of any architectures; the first is *the* student.
        task: see :class:`kdx.Scheme`.
        knowledge: see :class:`kdx.Scheme`; replaces the soft targets. Every peer gets its own copy of a component.
        ensemble: the rule.
        shift: largest shift of a view in pixels.
        flip: probability of a mirror image; with ``shift=0, flip=0`` all peers see the inputs as they are.
        seed: of the views.
        views: ``(inputs, peer) -> inputs`` instead of shift and flip, for other augmentation or data; it draws from
            torch's generator.
        peer_outputs: see :class:`kdx.Mutual`.

    Raises:
        ValueError: fewer than two peers; views without ``batch.index``, of inputs that are no images, or that move
            images whose pixels have labels of their own.

    Paper: Guo et al., Online Knowledge Distillation via Collaborative Learning, CVPR 2020,
    https://openaccess.thecvf.com/content_CVPR_2020/html/Guo_Online_Knowledge_Distillation_via_Collaborative_Learning_CVPR_2020_paper.html.

    Example:
        >>> peers = [nn.Sequential(nn.Flatten(), nn.Linear(16, 3)) for _ in range(2)]
        >>> scheme = KDCL(peers, ensemble="naive", shift=1)
        >>> batch = Batch(torch.randn(8, 1, 4, 4), torch.arange(8) % 3, torch.arange(8))
        >>> sorted(scheme(batch).terms)
        ['peer0/kd', 'peer0/task', 'peer1/kd', 'peer1/task']
    """

    def __init__(
        self,
        peers: Sequence[nn.Module],
        *,
        task: Task = cross_entropy,
        knowledge: KnowledgeTerms | None = None,
        ensemble: Rule = "min-logit",
        shift: int = 2,
        flip: float = 0.5,
        seed: int = 0,
        views: Callable[[Any, int], Any] | None = None,
        peer_outputs: Sequence[Output] | None = None,
    ) -> None:
        check_choice("ensemble", ensemble, get_args(Rule))
        knowledge = knowledge or {"kd": SoftTargets(2.0)}
        super().__init__(peers, task=task, knowledge=knowledge, peer_outputs=peer_outputs)
        self.rule: Rule = ensemble
        self.views = views
        self._augment = [ShiftFlip(shift, flip, seed=seed * len(peers) + peer) for peer in range(len(peers))]
        self._epoch = 0

    @override
    def sources(self, learner: int, components: Mapping[str, Knowledge]) -> dict[str, Mapping[str, Knowledge]]:
        of_logits = {name: part for name, part in components.items() if {*part.teacher_taps} == {LOGITS}}
        of_layers = {name: part for name, part in components.items() if name not in of_logits}
        return {"ensemble": of_logits, **super().sources(learner, of_layers)}

    @override
    def answers(self, captured: Sequence[Captured], batch: Batch) -> dict[str, Captured]:
        shape, targets = captured[0].logits.shape, self.responses.aligned(batch.targets)
        dim = self.responses.axis(shape)
        elements = shape[:dim] + shape[dim + 1 :]
        if not isinstance(targets, Tensor) or targets.shape != elements or targets.is_floating_point():
            came = f"shape {list(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
            raise ValueError(
                f"kdcl compares every peer with the labels and needs batch.targets of classes, {list(elements)} for "
                f"logits of shape {list(shape)}, got {came}"
            )
        if len(elements) > 1 and self._moves:
            raise ValueError(
                "the views of kdcl shift and mirror images, and the labels of their pixels stay where they are: write "
                "shift=0, flip=0, or give views= that move no pixel (colour, noise)"
            )
        for each in captured[1:]:
            check_same_outputs(captured[0].logits, each.logits, dim)
        check_class_numbers("kdcl", targets, shape[dim], waits=False)
        logits = torch.stack([class_rows(each.logits.detach(), dim) for each in captured])  # [K, R, C]
        combined = of_class_rows(ENSEMBLES[self.rule](logits, targets.flatten()), shape, dim)
        return {"ensemble": Captured({LOGITS: combined}, {LOGITS: (LOGITS,)}), **super().answers(captured, batch)}

    @property
    def needs_index(self) -> bool:
        """Whether views are drawn by ``batch.index``."""
        return self._moves

    @property
    def _moves(self) -> bool:
        """Whether pixels are shifted or mirrored, for each peer otherwise."""
        return self.views is None and any(augment.shift or augment.flip for augment in self._augment)

    @override
    def view(self, peer: int, batch: Batch) -> Any:
        augment = self._augment[peer]
        if not self.training or (self.views is None and not self._moves):
            return batch.inputs
        if self.views is not None:
            return self.views(batch.inputs, peer)
        if batch.index is None:
            raise ValueError(
                "a peer's view is drawn by sample and needs batch.index; let the data set yield "
                "kdx.Batch(inputs, targets, index), give views=, or shift=0 and flip=0"
            )
        check_index("kdcl", batch.index, batch.rows, targets=batch.targets)
        if not isinstance(batch.inputs, Tensor) or batch.inputs.dim() != 4:
            raise ValueError(
                "views shift and mirror images [N, C, H, W]; give views= for other inputs, or shift=0, flip=0"
            )
        return augment(batch.inputs, batch.index, self._epoch)

    @override
    def epoch_start(self, epoch: int, epochs: int) -> None:
        super().epoch_start(epoch, epochs)
        self._epoch = epoch

    @override
    def get_extra_state(self) -> dict[str, int]:
        return {"epoch": self._epoch}

    @override
    def set_extra_state(self, state: Any) -> None:
        self._epoch = int(state["epoch"])


def naive_ensemble(logits: Tensor, targets: Tensor) -> Tensor:
    """In each row the logits of the peer whose cross-entropy with the label is smallest.

    Args:
        logits: ``[K, N, C]``.
        targets: ``[N]`` int64; in rows of ``-100`` the mean of the logits.

    Returns:
        ``[N, C]``.

    Example:
        >>> logits = torch.tensor([[[1.0, 0.0]], [[3.0, 0.0]]])
        >>> naive_ensemble(logits, torch.tensor([0])).tolist(), naive_ensemble(logits, torch.tensor([1])).tolist()
        ([[3.0, 0.0]], [[1.0, 0.0]])
    """
    labelled, label = _label(logits, targets)
    loss = logits.logsumexp(2) - logits.gather(2, label).squeeze(2)  # [K, N]
    best = logits.gather(0, loss.argmin(0)[None, :, None].expand(1, *logits.shape[1:]))[0]
    return torch.where(labelled, best, logits.mean(0))


def min_logit_ensemble(logits: Tensor, targets: Tensor) -> Tensor:
    """For each class the smallest of the peers' logits, after the label's logit is subtracted; 0 for the label.

    Args:
        logits: ``[K, N, C]``.
        targets: ``[N]`` int64; in rows of ``-100`` the mean of the logits.

    Returns:
        ``[N, C]``; softmax of it gives the label at least as much as any single peer does.

    Example:
        >>> logits = torch.tensor([[[2.0, 1.0, 0.0]], [[3.0, 0.0, 2.5]]])
        >>> min_logit_ensemble(logits, torch.tensor([0])).tolist()
        [[0.0, -3.0, -2.0]]
    """
    labelled, label = _label(logits, targets)
    relative = logits - logits.gather(2, label)
    return torch.where(labelled, relative.amin(0), logits.mean(0))


def linear_ensemble(logits: Tensor, targets: Tensor) -> Tensor:
    """``sum_i a_i z_i`` with ``a >= 0, sum a = 1`` of the smallest mean cross-entropy over the labelled rows.

    One ``a`` for the batch: of a single row the best is nearly always one peer alone, which is :func:`naive_ensemble`.
    The problem is convex; it is solved by 20 multiplicative steps (exponentiated gradient) from equal weights, each the
    best of 12 lengths.

    Args:
        logits: ``[K, N, C]``.
        targets: ``[N]`` int64; in rows of ``-100`` the mean of the logits.

    Returns:
        ``[N, C]``.

    Example:
        >>> logits = torch.tensor([[[0.0, 0.0]], [[4.0, 0.0]]])
        >>> [round(value, 1) for value in linear_ensemble(logits, torch.tensor([0]))[0].tolist()]
        [4.0, 0.0]
    """
    labelled, label = _label(logits, targets)
    z = logits.double() if logits.dtype == torch.float64 else logits.float()
    rows, label = labelled.to(z.dtype), label[0]  # [N, 1]

    def loss(shares: Tensor) -> Tensor:  # [R, K] -> [R]
        mixed = torch.einsum("rk,knc->rnc", shares, z)
        found = mixed.logsumexp(2, keepdim=True) - mixed.gather(2, label.expand(len(shares), -1, 1))
        return (rows * found).sum((1, 2))

    own = z - z.gather(2, label.expand(len(z), -1, 1))  # [K, N, C]: its mean under p is the gradient
    log_shares = z.new_zeros(len(z))
    lengths = torch.cat([z.new_zeros(1), torch.logspace(-2, 3, RATES - 1, dtype=z.dtype, device=z.device)])
    for _ in range(ROUNDS):
        p = torch.einsum("k,knc->nc", log_shares.softmax(0), z).softmax(1)
        gradient = torch.einsum("nc,knc->k", rows * p, own) / rows.sum().clamp(min=1)
        tried = log_shares - lengths[:, None] * (gradient - gradient.min())  # [R, K]
        tried = (tried - tried.amax(1, keepdim=True)).clamp(min=-20.0)
        log_shares = tried[loss(tried.softmax(1)).argmin()]
    combined = torch.einsum("k,knc->nc", log_shares.softmax(0), z).to(logits.dtype)
    return torch.where(labelled, combined, logits.mean(0))


def _label(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Whether a row has a label ``[N, 1]``, and its label, or 0, ``[K, N, 1]``."""
    labelled = targets != IGNORE
    label = torch.where(labelled, targets, 0)[None, :, None].expand(len(logits), -1, 1)
    return labelled[:, None], label


ENSEMBLES: dict[Rule, Callable[[Tensor, Tensor], Tensor]] = {
    "naive": naive_ensemble,
    "linear": linear_ensemble,
    "min-logit": min_logit_ensemble,
}
