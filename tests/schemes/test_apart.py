"""A frozen teacher shares no memory with what is trained, and what is trained can be trained; else it is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import kdx
from kdx.schemes.apart import shared_memory
from kdx.teachers import Deeper, Frozen

BATCH = kdx.Batch(torch.randn(8, 4), torch.arange(8) % 3)


class Net(nn.Module):
    """A body with BatchNorm, and a head."""

    def __init__(self, body: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body or nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.body(x))


def tied() -> tuple[Net, Net]:
    student, teacher = Net(), Net()
    student.fc.weight = teacher.fc.weight
    return student, teacher


def one_body() -> tuple[Net, Net]:
    teacher = Net()
    return Net(teacher.body), teacher


def statistics() -> tuple[Net, Net]:
    student, teacher = Net(), Net()
    student.body[1].running_var = teacher.body[1].running_var
    return student, teacher


def views() -> tuple[Net, Net]:
    student, teacher = Net(), Net()
    flat = torch.randn(40)
    student.fc.weight = nn.Parameter(flat[:18].view(3, 6))
    teacher.fc.weight = nn.Parameter(flat[10:28].view(3, 6))
    return student, teacher


class Pair(nn.Module):
    """What the scheme residual trains."""

    def __init__(self, student: nn.Module, assistant: nn.Module) -> None:
        super().__init__()
        self.student, self.assistant = student, assistant

    def forward(self, x):
        return self.student(x) + self.assistant(x)


KD: dict[str, Any] = {"knowledge": {"kd": kdx.SoftTargets(2.0)}}
SCHEMES = {
    "offline": lambda s, t: kdx.make("scheme", "offline", s, t, **KD),
    "offline, held": lambda s, t: kdx.make("scheme", "offline", s, Frozen(t), **KD),
    "multi-teacher": lambda s, t: kdx.make("scheme", "multi-teacher", s, {"one": Net(), "two": t}, **KD),
    "dense-guidance": lambda s, t: kdx.make("scheme", "dense-guidance", s, {"one": Net(), "two": t}, **KD),
    "hint-stage": lambda s, t: kdx.make("scheme", "hint-stage", s, t, student_layer="body", teacher_layer="body"),
    "boundary-stage": lambda s, t: kdx.make(
        "scheme", "boundary-stage", s, t, student_layers="body", teacher_layers="body"
    ),
    "simkd": lambda s, t: kdx.make(
        "scheme", "simkd", s, t, student_layer="body", teacher_layer="body", classifier="fc"
    ),
    "data-free": lambda s, t: kdx.make("scheme", "data-free", s, t),
    "residual": lambda s, t: kdx.make("scheme", "residual", Pair(Net(), s), t),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("share", "named"),
    [
        (tied, "fc.weight"),
        (one_body, "body.0.weight"),
        (statistics, "body.1.running_var"),
        (views, "fc.weight"),
        (lambda: (net := Net(), net), "body.0.weight"),
    ],
    ids=["tied", "one body", "statistics", "views", "itself"],
)
def test_a_teacher_that_shares_memory_with_what_is_trained_is_refused(scheme, share, named) -> None:
    student, teacher = share()
    with pytest.raises(ValueError, match=rf"shares memory .*'{named}' is '.*'.*copy\.deepcopy|Pass a copy") as error:
        SCHEMES[scheme](student, teacher)
    if "Pass a copy" not in str(error.value):
        assert "teacher 'teacher'" in str(error.value) or "teacher 'two'" in str(error.value)
    copied = share()[0]
    SCHEMES[scheme](copied, copy.deepcopy(copied))


def test_a_scheme_of_ones_own_is_checked_before_it_is_trained() -> None:
    class Own(kdx.Supervised):
        def __init__(self, student, teacher) -> None:
            super().__init__(student)
            self.guide = Frozen(teacher)

    with pytest.raises(ValueError, match="teacher 'guide' shares memory"):
        kdx.fit(Own(*one_body()), [BATCH], device="cpu")
    kdx.fit(Own(Net(), Net()), [BATCH], device="cpu")


def test_what_stays_as_it_is_in_both_may_be_shared() -> None:
    student, teacher = Net(nn.Linear(4, 6)), Net(nn.Linear(4, 6))
    student.body.requires_grad_(False)
    teacher.body.weight, teacher.body.bias = student.body.weight, student.body.bias
    kdx.fit(kdx.Offline(student, teacher, **KD), [BATCH], device="cpu")
    two = {"a": Net(), "b": Net()}
    two["b"].fc = two["a"].fc
    kdx.Offline(Net(), kdx.teachers.Ensemble(two), **KD)


def test_a_module_in_both_is_refused_where_all_of_it_is_frozen_too() -> None:
    student, teacher = Net(nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5))), Net()
    student.body.requires_grad_(False)
    teacher.body = student.body
    message = r"teacher 'teacher' shares modules .* its 'body' is 'student\.body' of Offline\. .* adapter='off'"
    with pytest.raises(ValueError, match=message):
        kdx.Offline(student, teacher, **KD)


def test_teachers_of_the_student_by_design_are_no_frozen_ones() -> None:
    net = Net()
    kdx.fit(kdx.make("scheme", "ema-teacher", net), [BATCH], device="cpu")
    kdx.fit(kdx.make("scheme", "snapshot-distillation", net, cycle=1), [BATCH], epochs=2, device="cpu")
    kdx.Offline(net, Deeper(net), knowledge={"hint": kdx.Hint(student="body.0", teacher="body")})
    teacher = Net()
    kdx.make("scheme", "online", Net(teacher.body), teacher, **KD)


def test_the_finished_student_of_a_pair_shares_nothing_with_its_assistant() -> None:
    student = Net()
    with pytest.raises(ValueError, match=r"the assistant's 'body\.0\.weight' is the student's 'body\.0\.weight'"):
        kdx.make("scheme", "residual", Pair(student, Net(student.body)), Net())


def test_memory_is_shared_where_it_overlaps() -> None:
    flat = torch.zeros(10)
    ours = [("head", flat[:4]), ("tail", flat[6:])]
    assert shared_memory(ours, [("middle", flat[4:6])]) == []
    assert shared_memory(ours, [("wide", flat[3:7])]) == [("head", "wide"), ("tail", "wide")]
    assert shared_memory([("column", flat.view(5, 2)[:, 1])], [("last", flat[9:])]) == [("column", "last")]
    assert shared_memory([("empty", flat[:0]), ("meta", torch.zeros(3, device="meta"))], ours) == []


def test_a_student_made_under_inference_mode_is_refused_by_name() -> None:
    with torch.inference_mode():
        student, teacher = Net(), Net()
    with pytest.raises(ValueError, match=r"student\.body\.0\.weight.* made under torch\.inference_mode .*deepcopy"):
        kdx.Offline(student, Net(), **KD)
    with pytest.raises(ValueError, match=r"student\.body\.0\.weight.* made under torch\.inference_mode"):
        kdx.fit(kdx.Supervised(student), [BATCH], device="cpu")
    # a teacher only answers
    kdx.fit(kdx.Offline(copy.deepcopy(student), teacher, **KD), [BATCH], device="cpu")
    with pytest.raises(ValueError, match=r"'body\.0\.weight' of the teacher .* no gradient can pass"):
        kdx.make("scheme", "data-free", Net(), teacher)
    with pytest.raises(ValueError, match=r"train_mode: body\.0\.weight.* of the teacher were made under"):
        Frozen(teacher, train_mode=True)


@pytest.mark.parametrize(
    "form", [tuple, lambda parts: kdx.Batch(*parts), lambda parts: {"x": parts[0], "labels": parts[1]}]
)
def test_batches_made_under_inference_mode_train(form) -> None:
    def total(batch) -> torch.Tensor:
        torch.manual_seed(0)
        scheme = kdx.Offline(Net(), Net(), **KD)
        losses = scheme(batch).total
        losses.backward()
        return losses

    parts = (BATCH.inputs, BATCH.targets)
    with torch.inference_mode():
        made = form([part.clone() for part in parts])
    assert torch.equal(total(made), total(form(parts)))
    kdx.fit(kdx.Offline(Net(), Net(), **KD), [made], device="cpu")


def test_a_teacher_that_turns_inference_mode_on_teaches() -> None:
    class Guarded(Net):
        @torch.inference_mode()
        def forward(self, x):
            return super().forward(x)

    torch.manual_seed(0)
    plain, student = Net(), Net()
    guarded = Guarded()
    guarded.load_state_dict(plain.state_dict())
    knowledge = {"kd": kdx.SoftTargets(2.0), "hint": kdx.Hint(student="body", teacher="body")}
    expected = kdx.Offline(copy.deepcopy(student), plain, knowledge=copy.deepcopy(knowledge))
    found = kdx.Offline(student, guarded, knowledge=copy.deepcopy(knowledge))
    losses = []
    for scheme in (expected, found):
        torch.manual_seed(0)
        scheme.setup(BATCH)
        losses.append(scheme(BATCH))
        losses[-1].total.backward()
    assert torch.equal(losses[0].total, losses[1].total)
