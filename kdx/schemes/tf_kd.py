"""Tf-KD: a virtual teacher that is right by construction regularises the student."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import Batch
from kdx.capture import Output
from kdx.features.operands import Variant, check_choice, in_full_precision
from kdx.knowledge.labels import label_masks
from kdx.losses import Mean, Over
from kdx.ops import softmax_kl
from kdx.ranges import check_number
from kdx.responses import Form, class_rows
from kdx.schemes.base import Task
from kdx.schemes.one_student import OneStudent
from kdx.tasks.classification import cross_entropy
from kdx.tasks.heads import Heads

__all__ = ["TfKD", "virtual_teacher_kl"]


def virtual_teacher_kl(
    logits: Tensor,
    targets: Tensor,
    *,
    correct: float = 0.99,
    temperature: float = 20.0,
    variant: Variant = "paper",
    class_dim: int = 1,
) -> Tensor:
    """KL of a student to a virtual teacher, which gives the label's class ``correct`` and the others equal shares.

    Args:
        logits: of two classes or more, ``[N, C]``, ``[N, L, C]`` or ``[N, C, d1, d2, ...]``.
        targets: the labels, int64, of that shape without the classes; ``-100`` marks an element without one, which
            counts for nothing.
        correct: probability of the label's class, between 1 / C and 1.
        temperature: T > 0, by which the virtual teacher is softened: ``softmax(p / T)``.
        variant: ``"paper"``: the student's logits are divided by T too; ``"code"``: they are not.
        class_dim: axis of the classes.

    Returns:
        A scalar, summed over classes and averaged over the elements with a label, without ``T^2``.

    Example:
        >>> z, y = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
        >>> round(virtual_teacher_kl(z, y, variant="code").item(), 4)
        0.4096
    """
    found: Tensor = in_full_precision(_virtual_teacher_kl)(
        logits, logits, targets, correct, temperature, variant, class_dim
    )
    return found


def _virtual_teacher_kl(
    logits: Tensor, _: Tensor, targets: Tensor, correct: float, temperature: float, variant: Variant, class_dim: int
) -> Tensor:
    is_target, labelled = label_masks("tf-kd", logits, targets, class_dim)
    rows = class_rows(logits, class_dim)  # [R, C]
    others = (1 - correct) / (rows.shape[1] - 1)
    virtual = torch.full_like(rows, others).masked_fill(is_target, correct) / temperature
    return softmax_kl(rows / temperature if variant == "paper" else rows, virtual, mask=labelled)


class TfKD(OneStudent):
    """Teacher-free distillation: cross-entropy, and the KL to a virtual teacher that is made of the label alone.

    Total: ``(1 - alpha) w task(z, y) + alpha multiplier KL(softmax(p / T) || q)``. The virtual teacher p gives the
    label's class the probability ``correct`` and every other class an equal share of the rest; ``q`` is ``softmax(z /
    T)`` (``variant="paper"``) or ``softmax(z)`` (``"code"``). KLs are summed over classes and averaged over the
    elements with a label, without ``T^2``. As T is large and p lies between 0 and 1, what teaches is close to the
    uniform distribution: a regulariser, like smoothed labels, with the label's class a little ahead. The authors' code
    divides the KL by the number of classes as well, the default of torch's ``KLDivLoss``; their multiplier makes up
    for it.

    The paper's other form, self-training, is the assistant ``born-again`` with ``generations: 1``: the student's
    architecture, trained alone, teaches it as in ordinary distillation.

    Args:
        student: the model to train, with classes as outputs.
        alpha: share of the virtual teacher, in [0, 1]; 0.1 is ours, the authors set it for each model.
        correct: probability of the label's class, at most 1 and above 1 / C; 0.99 in the authors' code.
        temperature: T > 0; 20 as in the paper, or more.
        multiplier: of the KL, > 0.
        variant: ``"paper"`` or ``"code"``, see above.
        task: see :class:`kdx.Scheme`.
        student_output: see :class:`kdx.Taps`.

    Raises:
        ValueError: a task of another form than classes; in training, targets that are no integer labels.

    Paper: Yuan et al., Revisiting Knowledge Distillation via Label Smoothing Regularization, CVPR 2020,
    https://arxiv.org/abs/1909.11723; code: https://github.com/yuanli2333/Teacher-free-Knowledge-Distillation.

    Example:
        >>> free = TfKD(torch.nn.Linear(3, 2))
        >>> list(free((torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))).terms)
        ['task', 'virtual']
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        alpha: float = 0.1,
        correct: float = 0.99,
        temperature: float = 20.0,
        multiplier: float = 1.0,
        variant: Variant = "paper",
        task: Task = cross_entropy,
        student_output: Output = None,
    ) -> None:
        super().__init__(student, task=task, student_output=student_output)
        form = self.responses.form
        if isinstance(self.task, Heads) or form not in (None, Form.CLASSES):
            what = f"outputs of the form {form.value!r}" if form and form is not Form.CLASSES else "several heads"
            raise ValueError(f"tf-kd makes a teacher of the label's class and needs a task of classes, got {what}")
        self.alpha = check_number("alpha", alpha, least=0, most=1)
        self.correct = check_number("correct", correct, above=0, most=1)
        self.temperature = check_number("temperature", temperature, above=0)
        self.multiplier = check_number("multiplier", multiplier, above=0)
        check_choice("variant", variant, get_args(Variant))
        self.variant: Variant = variant

    @override
    def terms(self, batch: Batch) -> dict[str, Mean]:
        captured = self.taps(batch.inputs)
        terms = {name: term.scaled(1 - self.alpha) for name, term in self.task_terms(captured, batch).items()}
        logits = captured.logits
        axis = self.responses.axis(logits.shape)
        if not self.correct * logits.shape[axis] > 1:
            raise ValueError(
                f"correct: {self.correct} of {logits.shape[axis]} classes is no more than an equal share, so that the "
                "virtual teacher would not prefer the label; give more than 1 / C"
            )
        value = virtual_teacher_kl(
            logits,
            self.responses.aligned(batch.targets),
            correct=self.correct,
            temperature=self.temperature,
            variant=self.variant,
            class_dim=axis,
        )
        term = Mean(value, self.count(Over.LABELLED, batch), Over.LABELLED)
        return terms | {"virtual": term.scaled(self.alpha * self.multiplier)}
