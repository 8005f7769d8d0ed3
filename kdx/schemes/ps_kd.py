"""PS-KD: the student's predictions of the last epoch soften the targets of this one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import Captured, Output
from kdx.features.gathering import whole_batch
from kdx.knowledge.soft_targets import SoftTargets
from kdx.losses import Mean
from kdx.modes import evaluating
from kdx.ranges import check_number, check_whole
from kdx.sample_index import check_index
from kdx.schemes.base import KnowledgeTerms, Task, setup_components
from kdx.schemes.one_student import OneStudent
from kdx.tasks.classification import cross_entropy

__all__ = ["PSKD", "SampleStore"]


class SampleStore(nn.Module):
    """A model's answers for every sample: those of the last epoch, and those given so far in this one.

    Both are buffers, so that a checkpoint amid an epoch holds them. A sample that comes twice in an epoch is answered
    from the last epoch both times.

    Args:
        samples: number of samples; indices lie in ``0 .. samples - 1``.
        example: a captured batch, for the shapes of what is stored.
    """

    seen_before: Tensor
    seen_now: Tensor

    def __init__(self, samples: int, example: Captured) -> None:
        super().__init__()
        self.taps = tuple(example)
        device = next(iter(example.values())).device
        for name in ("seen_before", "seen_now"):
            self.register_buffer(name, torch.zeros(samples, dtype=torch.bool, device=device))
        for k, value in enumerate(example.values()):
            dtype = torch.promote_types(value.dtype, torch.float32)
            for when in ("before", "now"):
                self.register_buffer(f"{when}{k}", torch.zeros(samples, *value.shape[1:], dtype=dtype, device=device))

    def read(self, index: Tensor, otherwise: Captured) -> Captured:
        """The last epoch's values of the rows ``index``, those of ``otherwise`` for rows it has not seen."""
        seen = self.seen_before[index]
        values = {}
        for k, tap in enumerate(self.taps):
            stored = self.get_buffer(f"before{k}")[index]
            rows = seen.view(-1, *[1] * (stored.dim() - 1))
            values[tap] = torch.where(rows, stored, otherwise[tap].detach().to(stored.dtype))
        return otherwise.having(values)

    @torch.no_grad()
    def write(self, index: Tensor, captured: Captured) -> None:
        """Keeps this epoch's values; on several ranks every rank keeps those of all."""
        index = whole_batch(index)
        self.seen_now[index] = True
        for k, tap in enumerate(self.taps):
            store = self.get_buffer(f"now{k}")
            store[index] = whole_batch(captured[tap].detach()).to(store.dtype)

    def forget(self) -> None:
        """A new run begins."""
        self.seen_before.fill_(False)
        self.seen_now.fill_(False)

    def next_epoch(self) -> None:
        """This epoch becomes the last one. Rows that it did not see keep what they had."""
        self.seen_before.copy_(self.seen_now)
        for k in range(len(self.taps)):
            self.get_buffer(f"before{k}").copy_(self.get_buffer(f"now{k}"))


class PSKD(OneStudent):
    """Progressive self-knowledge distillation: each sample's prediction of the last epoch is its teacher in this one.

    Total in epoch e of E (from 0): ``(1 - a_e) w task(z, y) + a_e sum_k w_k knowledge_k(z, sg z of epoch e - 1)`` with
    ``a_e = alpha min(1, (e + 1) / E)``, alpha = .8. With the default knowledge, soft targets at T = 1, the gradient is
    that of the paper's ``CE(z, (1 - a_e) y + a_e p_{e-1})``. In the first epoch there is no teacher and ``a_0 = 0``, as
    in the authors' code, where the labels stand in for it. A row without an earlier prediction (left out by the loader
    so far) agrees with itself: it adds no soft target.

    The predictions are those made while training, on the view of that epoch, stored by ``batch.index`` in buffers:
    ``8 samples C`` bytes. They survive shuffling, are saved and resumed with the scheme, and are the same on every
    rank. In a loop of one's own call ``scheme.epoch_start(epoch, epochs)``; without it a scheme stays in epoch 0.

    Args:
        student: the model to train.
        samples: number of training samples, ``batch.index`` counts them; None: the loader's data set says
            (:func:`kdx.fit`).
        alpha: a_e at the end and after it, in [0, 1].
        task: see :class:`kdx.Scheme`.
        knowledge: see :class:`kdx.Scheme`; replaces the soft targets. What a component taps is stored per sample:
            ``8 samples`` times its number of elements in bytes.
        student_output: see :class:`kdx.Taps`.

    Raises:
        ValueError: a batch without index, with one that is negative or beyond ``samples`` or one for samples with
            different targets, or nobody said how many samples.

    Paper: Kim et al., Self-Knowledge Distillation with Progressive Refinement of Targets, ICCV 2021,
    https://arxiv.org/abs/2006.12000.

    Example:
        >>> scheme = PSKD(torch.nn.Linear(3, 2), samples=4)
        >>> batch = Batch(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64), torch.arange(4))
        >>> scheme.setup(batch)
        >>> for epoch in range(2):
        ...     scheme.epoch_start(epoch, 2)
        ...     print(sorted(scheme(batch).terms), round(scheme.alpha_now.item(), 2))
        ['kd', 'task'] 0.0
        ['kd', 'task'] 0.8
    """

    needs_index = True
    alpha_now: Tensor

    def __init__(
        self,
        student: nn.Module,
        *,
        samples: int | None = None,
        alpha: float = 0.8,
        task: Task = cross_entropy,
        knowledge: KnowledgeTerms | None = None,
        student_output: Output = None,
    ) -> None:
        super().__init__(
            student, task=task, knowledge=knowledge or {"kd": SoftTargets(1.0)}, student_output=student_output
        )
        self.samples = None if samples is None else check_whole("samples", samples, least=1)
        self.alpha = check_number("alpha", alpha, least=0, most=1)
        self.store: SampleStore | None = None
        self.register_buffer("alpha_now", torch.tensor(0.0))
        self._tap_both_sides()

    @property
    @override
    def ready(self) -> bool:
        return self.store is not None and super().ready

    @override
    def dataset_size(self, samples: int) -> None:
        super().dataset_size(samples)
        if self.samples is None:
            self.samples = samples

    @override
    def setup(self, batch: Batch | Any) -> None:
        if self.ready:
            return
        batch = Batch.of(batch)
        if self.samples is None:
            raise ValueError(
                "samples: ps-kd keeps a prediction per training sample and no data set told how many there are; give "
                "samples=len(dataset), or train on a loader whose dataset has a length"
            )
        with evaluating(self.student), torch.no_grad():
            captured = self.taps(batch.inputs)
        setup_components(self.components, lambda: captured, lambda: captured)
        read = dict.fromkeys(tap for component in self.components.values() for tap in component.teacher_taps)
        stored = {name: captured[name] for tap in read for name in captured.patterns[tap]}
        self.store = SampleStore(self.samples, Captured(stored))
        # every rank writes the rows of all, so data parallelism need not send the store around in each step
        self._ddp_params_and_buffers_to_ignore = [f"store.{name}" for name, _ in self.store.named_buffers()]

    @override
    def epoch_start(self, epoch: int, epochs: int) -> None:
        super().epoch_start(epoch, epochs)
        self.alpha_now.fill_(self.alpha * min(1.0, (epoch + 1) / epochs) if epoch else 0.0)
        if self.store is not None:
            if epoch:
                self.store.next_epoch()
            else:
                self.store.forget()

    @override
    def terms(self, batch: Batch) -> dict[str, Mean]:
        if self.store is None:
            raise RuntimeError(
                "ps-kd builds its store from the model's shapes: call scheme.setup(batch) once (kdx.fit does)"
            )
        index = self._index(batch)
        student = self.taps(batch.inputs)
        teacher = self.store.read(index, student)
        alpha = self.alpha_now.clone()  # the buffer may change before the backward pass
        terms = {name: term.scaled(1 - alpha) for name, term in self.task_terms(student, batch).items()}
        found = self.knowledge_terms(self.components, student, teacher, batch)
        terms |= {name: term.scaled(alpha) for name, term in found.items()}
        if self.training:
            self.store.write(index, student)
        return terms

    def _index(self, batch: Batch) -> Tensor:
        if batch.index is None:
            raise ValueError(
                "ps-kd keeps the last epoch's prediction of every sample and needs batch.index; let the data set yield "
                "kdx.Batch(inputs, targets, index), as kdx.datasets.View does"
            )
        check_index("ps-kd", batch.index, batch.rows, samples=self.samples, targets=batch.targets)
        return batch.index
