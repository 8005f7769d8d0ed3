"""Every learner and teacher of every scheme may return its logits inside of something, and a path finds them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import kdx
from kdx.models import ConvNet
from kdx.registry import Plugins
from kdx.training import evaluate

PATH = "[out][1][0]"


class Nested(ConvNet):
    """A network whose logits lie in a tuple in a mapping."""

    def forward(self, x: torch.Tensor) -> Any:
        return {"aux": x, "out": (x, [super().forward(x)])}


def net(kind: type[ConvNet], width: int = 4) -> ConvNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(width)
        return kind(width=width, stages=3, num_classes=3, input_shape=(1, 8, 8))


Make = Callable[..., kdx.Scheme]


def one_student(name: str, **options: Any) -> Make:
    return lambda kind, path: kdx.make("scheme", name, net(kind), student_output=path, **options)


def taught(name: str, **options: Any) -> Make:
    return lambda kind, path: kdx.make(
        "scheme", name, net(kind), net(kind, 6), student_output=path, teacher_output=path, **options
    )


def peers(name: str, **options: Any) -> Make:
    return lambda kind, path: kdx.make("scheme", name, [net(kind), net(kind, 6)], peer_outputs=[path, path], **options)


def frozen(kind: type[ConvNet], path: str | None) -> dict[str, kdx.Teacher]:
    return {"a": kdx.teachers.Frozen(net(kind, 6), output=path), "b": kdx.teachers.Frozen(net(kind, 8), output=path)}


def kd() -> dict[str, kdx.Knowledge]:
    return {"kd": kdx.SoftTargets(2.0)}


LAYER = {"student_layer": "stage2", "teacher_layer": "stage2"}
SCHEMES: dict[str, Make] = {
    "supervised": one_student("supervised"),
    "byot": one_student("byot"),
    "sad": one_student("sad", start=0.0),
    "cs-kd": one_student("cs-kd"),
    "tf-kd": one_student("tf-kd"),
    "ps-kd": one_student("ps-kd", samples=8),
    "one": one_student("one", split="stage1", branches=2),
    "ema-teacher": one_student("ema-teacher", knowledge=kd()),
    "snapshot-distillation": one_student("snapshot-distillation", cycle=1, knowledge=kd()),
    "offline": taught("offline", knowledge=kd()),
    "online": taught("online", knowledge=kd()),
    "mutual": peers("mutual", knowledge=kd()),
    "kdcl": peers("kdcl", shift=0, flip=0.0),
    "multi-teacher": lambda kind, path: kdx.make(
        "scheme", "multi-teacher", net(kind), frozen(kind, path), knowledge=kd(), student_output=path
    ),
    "dense-guidance": lambda kind, path: kdx.make(
        "scheme", "dense-guidance", net(kind), frozen(kind, path), knowledge=kd(), student_output=path
    ),
}
OTHERS = {
    "hint-stage": "has no term on outputs",
    "boundary-stage": "has no term on outputs",
    "paraphrase": "has no term on outputs",
    "simkd": "gives the outputs of the teacher's classifier, a tensor",
    "data-free": "see test_a_teacher_without_data_may_return_anything",
    "residual-features": "has a student made of two models by name, which gives a tensor",
    "on-policy": "trains language models, see test_on_policy.py",
    "residual": "has a student made of two models, see test_the_sum_of_a_pair_may_be_returned_inside_of_something",
}
"""Schemes that are not compared here, and why."""


@pytest.mark.parametrize("name", [*SCHEMES])
def test_a_path_finds_the_logits_of_every_model(name: str) -> None:
    batch = kdx.Batch(torch.randn(8, 1, 8, 8), torch.tensor([0, 1, 2, 0] * 2), torch.arange(8))
    totals, read = [], []
    for kind, path in ((ConvNet, None), (Nested, PATH)):
        torch.manual_seed(0)
        scheme = SCHEMES[name](kind, path)
        scheme.setup(batch)
        scheme.epoch_start(0, 2)
        scheme.advance(1, 2)
        scheme.eval()
        totals.append(scheme(batch).terms)
        read.append({each: scheme.reader(each)(model(batch.inputs)) for each, model in scheme.students.items()})
        if kind is Nested:
            found = evaluate(next(iter(scheme.students.values())), [batch], output=path)
            assert found["accuracy"] >= 0
    torch.testing.assert_close(totals[1], totals[0], rtol=0, atol=0)
    torch.testing.assert_close(read[1], read[0], rtol=0, atol=0)


def test_every_scheme_is_looked_at() -> None:
    own = Plugins(entries=(), blocked=(), trace=False).components("scheme").keys()
    assert own == SCHEMES.keys() | OTHERS.keys()


def test_a_teacher_without_data_may_return_anything() -> None:
    terms = []
    batch = kdx.Batch(torch.randn(4, 1, 8, 8))
    for kind, path in ((ConvNet, None), (Nested, PATH)):
        torch.manual_seed(0)
        scheme = taught("data-free", knowledge=kd())(kind, path)
        scheme.setup(batch)
        scheme.eval()
        terms.append({phase.name: scheme(batch, phase.name).terms for phase in scheme.phases})
    torch.testing.assert_close(terms[1], terms[0], rtol=0, atol=0)


class Pair(nn.Module):
    """A student and an assistant whose sum is returned in a mapping, or by itself."""

    def __init__(self, *, nested: bool) -> None:
        super().__init__()
        self.student, self.assistant, self.nested = net(ConvNet), net(ConvNet, 6), nested

    def forward(self, x: torch.Tensor) -> Any:
        both = self.student(x) + self.assistant(x)
        return {"out": (x, [both])} if self.nested else both


def test_the_sum_of_a_pair_may_be_returned_inside_of_something() -> None:
    batch = kdx.Batch(torch.randn(4, 1, 8, 8), torch.arange(4) % 3)
    terms = []
    for kind, path in ((ConvNet, None), (Nested, PATH)):
        options = {"student_output": path, "teacher_output": path}
        scheme = kdx.make("scheme", "residual", Pair(nested=kind is Nested), net(kind, 8), **options).eval()
        terms.append(scheme(batch).terms)
        assert scheme.reader("student")(scheme.students["student"](batch.inputs)).shape == (4, 3)
    torch.testing.assert_close(terms[1], terms[0], rtol=0, atol=0)


class Tuples(nn.Module):
    """A model of Hugging Face that returns a tuple."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs, return_dict=False)


@pytest.mark.parametrize(("wrap", "path"), [(copy.copy, None), (copy.copy, "[logits]"), (Tuples, "[0]")])
def test_models_of_hugging_face_are_trained_and_evaluated_whatever_they_return(wrap, path) -> None:
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=8,
        num_labels=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student, teacher = (wrap(transformers.BertForSequenceClassification(config)) for _ in range(2))
    tokens = torch.arange(48).reshape(8, 6) % 20
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": torch.arange(8) % 2}
    scheme = kdx.Offline(student, teacher, knowledge=kd(), student_output=path, teacher_output=path)
    run = kdx.fit(scheme, [batch], epochs=1, evaluate=[batch], device="cpu")
    assert 0 <= run.history[0]["student/accuracy"] <= 1
