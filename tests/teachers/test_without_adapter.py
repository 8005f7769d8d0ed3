"""A student with adapters on a frozen base learns from that base, which is the student with its adapters off."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kdx
from kdx.errors import TeacherChangedError
from kdx.teachers import Frozen


class LowRank(nn.Module):
    """A linear layer with an adapter, which takes the layer's place in the model, as peft does it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(2, base.in_features) / 4)
        self.lora_b = nn.Parameter(torch.randn(base.out_features, 2) / 4)
        self.on = True

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + (x @ self.lora_a.T @ self.lora_b.T if self.on else 0)

    def turn(self, on: bool) -> None:
        self.on = on
        for each in (self.lora_a, self.lora_b):
            each.requires_grad_(on)  # peft does so too, and forgets what it was before


class Adapted(nn.Module):
    """A model with adapters, with the context of peft's."""

    def __init__(self, base: nn.Sequential) -> None:
        super().__init__()
        self.base_model = base.requires_grad_(False)
        for number, layer in enumerate(base):
            if isinstance(layer, nn.Linear):
                base[number] = LowRank(layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_model(x)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        layers = [each for each in self.base_model if isinstance(each, LowRank)]
        for layer in layers:
            layer.turn(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.turn(True)


BATCH = kdx.Batch(torch.randn(8, 4), torch.arange(8) % 3)
KD: dict[str, Any] = {"knowledge": {"kd": kdx.SoftTargets(1.0)}}


def base() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3))


def test_the_base_teaches_the_student_that_is_made_of_it() -> None:
    apart, found = base(), {}
    student = Adapted(base())
    student.base_model[1].eval()  # as a frozen dropout is kept
    for kind, teacher in {"off": Frozen(student, adapter="off"), "copy": apart}.items():
        scheme = kdx.Offline(student, teacher, **KD)
        torch.manual_seed(1)
        losses = scheme(BATCH)
        student.zero_grad()
        losses.total.backward()
        gradients = {name: each.grad.clone() for name, each in student.named_parameters() if each.grad is not None}
        found[kind] = losses.terms["kd"].detach(), gradients
    torch.testing.assert_close(found["off"], found["copy"], rtol=0, atol=0)
    assert found["off"][0] > 1e-3
    assert {name.rpartition(".")[2] for name in found["off"][1]} == {"lora_a", "lora_b"}


def test_neither_modes_nor_flags_of_the_student_are_touched() -> None:
    student = Adapted(base())
    student.base_model[0].lora_a.requires_grad_(False)  # which turning adapters on again would undo
    student.base_model[1].eval()
    modes = [module.training for module in student.modules()]
    flags = [parameter.requires_grad for parameter in student.parameters()]
    teacher = Frozen(student, adapter="off")
    for _ in range(2):
        assert not teacher(BATCH).logits.requires_grad if teacher.taps.patterns else True
        assert [module.training for module in student.modules()] == modes
        assert [parameter.requires_grad for parameter in student.parameters()] == flags
    assert all(layer.on for layer in student.base_model if isinstance(layer, LowRank))


def test_a_run_trains_the_adapters_and_watches_the_base() -> None:
    student, before = Adapted(base()), base()
    scheme = kdx.Offline(student, Frozen(student, adapter="off"), **KD)
    run = kdx.fit(scheme, [BATCH] * 3, evaluate=[BATCH], device="cpu", progress=False)
    assert sorted(run.teachers) == ["teacher"]
    assert torch.equal(student.base_model[0].base.weight, before[0].weight)

    class Writes:
        @kdx.hookimpl
        def kdx_step_end(self) -> None:
            with torch.no_grad():
                student.base_model[0].base.weight.add_(1)

    with pytest.raises(TeacherChangedError, match=r"'base_model\.0\.base\.weight'"):
        kdx.fit(scheme, [BATCH] * 3, device="cpu", progress=False, observers=[Writes()])


def test_a_base_that_is_trained_is_refused_by_name() -> None:
    student = Adapted(base())
    student.base_model[2].base.bias.requires_grad_(True)
    scheme = kdx.Offline(student, Frozen(student, adapter="off"), **KD)
    with pytest.raises(
        ValueError, match=r"'base_model\.2\.base\.bias' of it is trained, .* freeze all but the adapters"
    ):
        kdx.fit(scheme, [BATCH], device="cpu", progress=False)


def test_a_base_that_is_trained_is_refused_where_its_logits_are_held_as_a_head_too() -> None:
    torch.manual_seed(0)
    student = Adapted(nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6)))
    student.head = nn.Linear(6, 3).requires_grad_(False)
    student.forward = lambda x: student.head(student.base_model(x))  # type: ignore[method-assign]
    head = kdx.Head("base_model.1", "head")
    for trained in (student.base_model[1].weight, student.head.weight):
        trained.requires_grad_(True)
        scheme = kdx.Offline(student, Frozen(student, adapter="off", output=head), student_output=head, task=None, **KD)
        with pytest.raises(ValueError, match=r"of it is trained, .* freeze all but the adapters"):
            scheme(BATCH)
        trained.requires_grad_(False)
    scheme = kdx.Offline(student, Frozen(student, adapter="off", output=head), student_output=head, task=None, **KD)
    assert scheme(BATCH).total > 0


def test_the_base_itself_is_refused_as_the_teacher_with_the_way_out() -> None:
    model = base()
    student = Adapted(model)
    with pytest.raises(ValueError, match=r"shares memory .* kdx\.teachers\.Frozen\(student, adapter='off'\)"):
        kdx.Offline(student, model, **KD)


def test_a_copy_in_another_dtype_teaches_without_its_adapters() -> None:
    student = Adapted(base())
    teacher = Frozen(student, adapter="off", dtype=torch.float64)
    teacher.tap(("logits",))
    expected = base().double().eval()(BATCH.inputs.double())
    torch.testing.assert_close(teacher(BATCH).logits, expected.float())
    assert not teacher.inside_student
    kdx.fit(kdx.Offline(student, teacher, **KD), [BATCH], device="cpu", progress=False)


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (base, {"adapter": "off"}, TypeError, r"Sequential has no disable_adapter\(\)"),
        (lambda: Adapted(base()), {"adapter": "on"}, ValueError, "adapter: expected 'off', .* got 'on'"),
        (lambda: Adapted(base()), {"adapter": "off", "train_mode": True}, ValueError, "got it beside train_mode"),
    ],
)
def test_what_cannot_teach_without_adapters_is_refused(model, options, error, message) -> None:
    with pytest.raises(error, match=message):
        Frozen(model(), **options)


def test_a_copied_scheme_is_taught_by_its_own_base() -> None:
    student = Adapted(base())
    scheme = copy.deepcopy(kdx.Offline(student, Frozen(student, adapter="off"), **KD))
    assert scheme.teacher.model is scheme.student
    assert scheme(BATCH).terms["kd"] > 1e-3
