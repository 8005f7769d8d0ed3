"""Divergences of answers that are not held as logits: hidden states and a head, a few classes, a narrower dtype."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import kdx
from kdx import Batch, Captured, LinearLogits
from kdx.losses import Over
from kdx.ops import SparseTargets, topk_kl

V = 11
NAMES = ["soft-targets", "reverse-kl", "jsd", "skew-kl"]


def answers(*, bias: bool = False, scale: float = 1.0, softcap: float | None = None, classes: int = V) -> LinearLogits:
    hidden = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(classes, 4, dtype=torch.float64, requires_grad=True)
    own = torch.randn(classes, dtype=torch.float64, requires_grad=True) if bias else None
    return LinearLogits(hidden, weight, own, scale, softcap)


LABELS = torch.tensor([[-100, -100, 3, 7, 1], [0, 10, 4, 4, -100]])


def component(name: str, task: Any = None, **options: Any) -> kdx.Knowledge:
    made = kdx.make("knowledge", name, temperature=2.0, **options)
    made.bind((task or kdx.make("task", "causal-lm")).responses)
    return made


def loss_and_gradients(made: kdx.Knowledge, student: LinearLogits, answer: Any, teacher: Any) -> list[Tensor]:
    """With ``answer`` made of the leaves of ``student``."""
    sides = []
    for side in (answer, teacher):
        is_tensor = isinstance(side, Tensor)
        sides.append(Captured({"logits": side} if is_tensor else {}, held={} if is_tensor else {"logits": side}))
    loss = made(sides[0], sides[1].detach(), Batch(None, LABELS))
    leaves = [leaf for leaf in (student.hidden, student.weight, student.bias) if leaf is not None]
    return [loss, *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ours", ["dense", "linear"])
@pytest.mark.parametrize("theirs", ["dense", "linear"])
@pytest.mark.parametrize("more", [{}, {"bias": True, "scale": 0.5, "softcap": 2.0}])
def test_every_combination_is_the_divergence_of_the_logits(
    name: str, ours: str, theirs: str, more: dict[str, Any]
) -> None:
    student, teacher = answers(**more), answers(**more)
    made = component(name)
    wanted = loss_and_gradients(made, student, student.dense(), teacher.dense())
    found = loss_and_gradients(
        made,
        student,
        student if ours == "linear" else student.dense(),
        teacher if theirs == "linear" else teacher.dense(),
    )
    for ours_, wanted_ in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours_, wanted_, rtol=1e-9, atol=1e-11)


def sparse(dense: Tensor, count: int = 3) -> SparseTargets:
    logprobs, ids = (dense / 2.0).log_softmax(-1).topk(count)
    return SparseTargets(ids, logprobs, temperature=2.0)


@pytest.mark.parametrize(("name", "tail"), [(n, t) for n in NAMES for t in ("bucket", "even")] + [(NAMES[0], "drop")])
@pytest.mark.parametrize("ours", ["dense", "linear"])
def test_a_few_classes_of_a_store_are_compared_by_the_op_with_the_tail_that_was_said(
    name: str, tail: str, ours: str
) -> None:
    student, targets = answers(), sparse(torch.randn(2, 5, V, dtype=torch.float64))
    made = component(name, tail=tail)
    found = loss_and_gradients(made, student, student if ours == "linear" else student.dense(), targets)
    mask = LABELS.roll(-1, 1) != -100
    mask[:, -1] = False
    kind = {"soft-targets": "forward", "reverse-kl": "reverse", "skew-kl": "forward"}.get(name, name)
    numbers = {"temperature": 2.0, "divergence": kind, "skew": 0.1 if name == "skew-kl" else 0.0}
    wanted = topk_kl(student.dense(), targets, tail=tail, mask=mask, **numbers)
    torch.testing.assert_close(found[0], wanted)
    torch.testing.assert_close(found[1], torch.autograd.grad(wanted, student.hidden)[0])


def test_rows_of_which_a_store_has_no_class_count_as_those_of_the_task_do() -> None:
    targets = sparse(torch.randn(2, 5, V, dtype=torch.float64))
    valid = torch.ones_like(targets.ids, dtype=torch.bool)
    made, student = component("soft-targets"), answers()
    (whole, *_) = loss_and_gradients(made, student, student, targets)
    valid[1, 0] = False
    (less, *_) = loss_and_gradients(made, student, student, replace(targets, valid=valid))
    alone = torch.zeros(2, 5, dtype=torch.bool)
    alone[1, 0] = True
    of_row = topk_kl(student.dense(), targets, mask=alone, temperature=2.0)
    torch.testing.assert_close(less, whole - of_row / 6)  # of six labelled, shifted tokens


@pytest.mark.parametrize("name", NAMES)
def test_vocabulary_compares_the_first_classes_of_both(name: str) -> None:
    student, teacher = answers(classes=V + 3), answers(classes=V + 1)
    made = component(name, vocabulary=V)
    wanted = loss_and_gradients(made, student, student.dense(), teacher.dense())
    for ours in (student, student.dense()):
        for found, want in zip(loss_and_gradients(made, student, ours, teacher), wanted, strict=True):
            torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-11)
    with pytest.raises(ValueError, match=r"vocabulary: the first 13 classes.*the teacher has 12"):
        loss_and_gradients(component(name, vocabulary=13), student, student, teacher)


def test_other_sizes_are_refused_with_the_way_out() -> None:
    student, teacher = answers(), answers(classes=V + 1)
    with pytest.raises(ValueError, match=r"\[2, 5, 11\], got \[2, 5, 12\].*vocabulary=n"):
        loss_and_gradients(component("soft-targets"), student, student, teacher)
    short = replace(answers(), hidden=torch.randn(2, 4, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"the student's 5 places, \[2, 5, 11\], got \[2, 4, 11\]"):
        loss_and_gradients(component("soft-targets"), student, student, short)


def test_classes_on_another_axis_are_refused() -> None:
    with pytest.raises(ValueError, match=r"classes on the last axis, got class_dim=1.*leave kdx.Head out"):
        loss_and_gradients(component("soft-targets", class_dim=1), answers(), answers(), answers())


def test_the_mean_is_over_what_it_was_over_and_rows_that_do_not_count_are_not_read() -> None:
    student, teacher = answers(), answers()
    with torch.no_grad():
        student.hidden[0, 0], teacher.hidden[1, 4] = torch.nan, torch.inf
    made = component("soft-targets")
    assert all(found.isfinite().all() for found in loss_and_gradients(made, student, student, teacher))
    captured = Captured({}, held={"logits": student})
    assert made.mean_over(captured, Batch(None, LABELS)) is Over.LABELLED


def test_a_teacher_held_in_half_precision_is_compared_as_it_is() -> None:
    student, narrow = torch.randn(4, V, requires_grad=True), torch.randn(4, V).bfloat16()
    teacher = Captured({}, held={"logits": narrow}, later={"logits": lambda: pytest.fail("it was widened")})
    made = kdx.SoftTargets(1.0)
    found = made(Captured({"logits": student}), teacher, None)
    torch.testing.assert_close(found, made(Captured({"logits": student}), Captured({"logits": narrow.float()}), None))


@pytest.mark.parametrize("name", ["reverse-kl", "jsd", "skew-kl"])
def test_tails_that_a_divergence_has_not_are_refused_at_construction(name: str) -> None:
    with pytest.raises(ValueError, match="take 'bucket' or 'even', got 'drop'"):
        kdx.make("knowledge", name, tail="drop")
    with pytest.raises(ValueError, match=r"tail: there is no 'bukcet'.*bucket"):
        kdx.make("knowledge", name, tail="bukcet")
