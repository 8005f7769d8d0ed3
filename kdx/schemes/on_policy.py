"""On-policy distillation: the student writes, and the teacher scores what it wrote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from typing_extensions import override

from kdx.batch import IGNORE, Batch, Sight
from kdx.capture import Captured, Output
from kdx.datasets.batch_maker import BatchMaker
from kdx.datasets.generation import Generator, ends_of
from kdx.datasets.rollouts import ROLLOUT, Rollouts
from kdx.knowledge.jsd import JSD
from kdx.knowledge.response import Response
from kdx.knowledge.reverse_kl import ReverseKL
from kdx.knowledge.soft_targets import SoftTargets
from kdx.losses import Count, Counted, Mean, Over
from kdx.ranges import check_number, check_whole
from kdx.schemes.base import KnowledgeTerms, Task
from kdx.schemes.offline import Offline
from kdx.tasks.causal_lm import CausalLM
from kdx.teachers import Stored, Teacher, TopK, as_teacher
from kdx.teachers.base import ModelTeacher

__all__ = ["OnPolicy"]


class OnPolicy(Offline):
    """Generalised knowledge distillation (GKD): a language model learns from its teacher on what it writes itself.

    :func:`kdx.fit` gives it prompts with completions, as any language model is trained on; with probability ``share``
    the student writes completions of its own in their place (:class:`kdx.datasets.Rollouts`). On either kind the loss
    is the knowledge, by default ``JSD_beta(teacher, student)`` (:class:`kdx.knowledge.JSD`) at temperature 1, a mean
    over the tokens of the completions, the end token included and nothing behind it. No gradient passes through the
    sampling. The task, if it has a weight, is learned from the data's completions alone: a student's own tokens are no
    labels.

    Total: ``w_task * task(z_s, y) + sum_k w_k * knowledge_k(student, teacher)``, the first term over the data's tokens.

    Args:
        student: the model to train, logits ``[N, L, V]`` of token ids.
        teacher: see :class:`kdx.Offline`; one that reads a store, or sees a view of the data, cannot score what is
            not in them and is refused.
        task: see :class:`kdx.Scheme`; a language model's, of weight 0 by default.
        knowledge: see :class:`kdx.Scheme`; replaces the divergence that ``beta`` chooses.
        beta: the divergence: 0 is the forward KL, 1 the reverse KL, and between them lies the generalised
            Jensen-Shannon divergence.
        top_k: how many of the teacher's likeliest classes the divergence is taken over, with the rest of either side as
            one class (:class:`kdx.teachers.TopK`, at temperature 1); None: all.
        share: the probability that a batch is the student's own (lambda of the paper).
        max_new_tokens: the most that the student writes in a row.
        temperature: of sampling; 0 takes the likeliest token.
        top_p: tokens are drawn from the likeliest that have this probability together; 1: from all.
        every: the student writes anew in each ``every``-th of its batches, and those between are drawn from the ones
            kept; with ``accumulate`` a step has several batches.
        buffer: how many of the newest batches that the student wrote are kept.
        prompt: the number of tokens at the start of a row that are its prompt; None: those before the first with a
            target.
        ends: end tokens; None: those that the student's config says.
        generator: samples from the student, as :class:`kdx.datasets.VllmServer`; None: the student does it here.
        seed: of all that is drawn; None: torch's, when the first batch is made.
        student_output: see :class:`kdx.Taps`.
        teacher_output: the same for the teacher.
        teacher_view: refused unless it is a function of the batch, see ``teacher``.

    Raises:
        ValueError: a number out of range; a teacher that cannot score new rows; a task with a weight where no batch is
            of the data (``share=1``).
        CaptureError: see :class:`kdx.Offline`.

    Paper: Agarwal et al., On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes, ICLR 2024,
    https://arxiv.org/abs/2306.13649.

    Example:
        >>> import torch, kdx
        >>> student, teacher = (torch.nn.Sequential(torch.nn.Embedding(5, w), torch.nn.Linear(w, 5)) for w in (2, 4))
        >>> ids = torch.randint(5, (8, 6))
        >>> distil = OnPolicy(student, teacher, prompt=2, max_new_tokens=4)
        >>> run = kdx.fit(distil, [(ids, ids)], epochs=3, device="cpu", progress=False)
        >>> run.step, sorted(distil((ids, ids)).terms)
        (3, ['kd'])
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Teacher,
        *,
        task: Task = None,
        knowledge: KnowledgeTerms | None = None,
        beta: float = 0.5,
        top_k: int | None = None,
        share: float = 1.0,
        max_new_tokens: int = 128,
        temperature: float = 1.0,
        top_p: float = 1.0,
        every: int = 1,
        buffer: int = 1,
        prompt: int | None = None,
        ends: Sequence[int] | int | None = None,
        generator: Generator | None = None,
        seed: int | None = None,
        student_output: Output = None,
        teacher_output: Output = None,
        teacher_view: Sight = None,
    ) -> None:
        if top_k is not None and student is not teacher:
            teacher, teacher_output, teacher_view = (
                TopK(as_teacher(teacher, teacher_output, teacher_view), check_whole("top_k", top_k, least=1)),
                None,
                None,
            )
        super().__init__(
            student,
            teacher,
            task=(0.0, CausalLM()) if task is None else task,
            knowledge=knowledge or {"kd": _divergence(check_number("beta", beta, least=0, most=1))},
            student_output=student_output,
            teacher_output=teacher_output,
            teacher_view=teacher_view,
        )
        self._check_teacher()
        options: dict[str, Any] = {
            "share": share,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "every": every,
            "buffer": buffer,
            "prompt": prompt,
            "ends": ends,
            "shift": self.responses.shift,
            "seed": seed,
        }
        if ends is None and generator is not None and getattr(generator, "ends", None) is None:
            options["ends"] = ends_of(student)  # those of the model, where a generator does not say its own
        reads = self.taps.output
        self._rollouts = Rollouts([], generator or student, output=reads if callable(reads) else None, **options)
        if self._rollouts.share == 1 and self.task_weight > 0:
            raise ValueError(
                f"the task has the weight {self.task_weight:g}, and with share=1 no batch holds completions of the "
                "data to learn it from; give a share below 1, or the task the weight 0"
            )

    @override
    def feed(self, train: Iterable[Any]) -> Iterable[Any]:
        """The batches of a loader, some of them written by the student; one that makes its own stays."""
        if isinstance(train, BatchMaker):
            return train
        return self._rollouts.over(train)

    @override
    def count(self, over: Counted, batch: Batch) -> Count:
        return super().count(over, _of_data(batch) if over is Over.TASK else batch)

    @override
    def task_terms(
        self, captured: Captured, batch: Batch, *, of: str | None = None, weight: float | None = None
    ) -> dict[str, Mean]:
        return super().task_terms(captured, _of_data(batch), of=of, weight=weight)

    def _check_teacher(self) -> None:
        for part in self.teacher.modules():
            if isinstance(part, Stored):
                raise ValueError(
                    "the teacher reads a store, which holds answers to the rows of the data, and on-policy training "
                    "asks for those to what the student writes; give the model itself, as kdx.teachers.Frozen(model)"
                )
            if isinstance(part, ModelTeacher) and isinstance(part.view, str):
                raise ValueError(
                    f"the teacher sees the view {part.view!r} of the data, and what the student writes has none; leave "
                    "view out, or give a function of the batch"
                )


def _divergence(beta: float) -> Response:
    """The divergence of GKD at temperature 1."""
    if beta == 0:
        return SoftTargets(1.0)
    return ReverseKL(1.0) if beta == 1 else JSD(1.0, beta=beta)


def _of_data(batch: Batch) -> Batch:
    """A batch with the data's targets alone: none where the student wrote it."""
    if ROLLOUT not in batch.views:
        return batch
    return batch._replace(targets=batch.targets.new_full(batch.targets.shape, IGNORE))
