"""After a run nothing of kdx is left on student, teacher and scheme, however it ended, and the scheme goes on."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import kdx
from kdx.errors import Interrupted
from tests.stopping import Stop

DATA = [(torch.randn(8, 4), torch.arange(8) % 3) for _ in range(2)]


def net(width: int = 6) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))


def hints() -> dict[str, Any]:
    return {"kd": kdx.SoftTargets(4.0), "hint": kdx.Hint(student="1", teacher="1")}


def bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, num_labels=3
    )
    return transformers.BertForSequenceClassification(config)


def attributes(model: nn.Module) -> dict[str, set[str]]:
    return {name: set(vars(module)) for name, module in model.named_modules()}


def hooks(model: nn.Module) -> list[str]:
    kinds = [name for name in vars(nn.Module()) if name.endswith("hooks")]
    return [f"{name}.{kind}" for name, module in model.named_modules() for kind in kinds if getattr(module, kind)]


@pytest.mark.parametrize(
    "options",
    [{}, {"mixed_precision": "bf16"}, pytest.param({"compile": True}, marks=pytest.mark.slow)],
    ids=["plain", "bf16", "compiled"],
)
@pytest.mark.filterwarnings("ignore:.*:UserWarning:torch")
def test_nothing_is_left_on_student_and_teacher(options) -> None:
    student, teacher = net(), net(8)
    before = attributes(student), attributes(teacher)
    scheme = kdx.Offline(student, teacher, knowledge=hints())
    own = set(vars(scheme))
    kdx.fit(scheme, DATA, device="cpu", **options)
    assert set(vars(scheme)) == own
    for model, had in zip((student, teacher), before, strict=True):
        assert hooks(model) == []
        assert attributes(model) == had
        inputs = DATA[0][0]
        model.eval()
        expected = model(inputs)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        exported = torch.export.export(model, (inputs,)).module()
        copies = [torch.load(buffer, weights_only=False), pickle.loads(pickle.dumps(model)), copy.deepcopy(model)]
        for other in (*copies, torch.jit.script(model), exported):
            assert torch.equal(other(inputs), expected)


def test_nothing_is_left_on_a_model_of_another_library() -> None:
    student, teacher = bert(), bert()
    before = attributes(student)
    tap = "bert.encoder.layer.*"
    scheme = kdx.Offline(student, teacher, knowledge={"hint": kdx.Hint(student=tap, teacher=tap)})
    data = [{"input_ids": torch.randint(20, (4, 5)), "labels": torch.arange(4) % 3} for _ in range(2)]
    kdx.fit(scheme, data, device="cpu")
    assert hooks(student) == hooks(teacher) == []
    assert attributes(student) == before
    pickle.loads(pickle.dumps(student))


@pytest.mark.parametrize("end", [Interrupted, RuntimeError])
def test_nothing_is_left_where_a_run_ends_early(end, monkeypatch) -> None:
    student, teacher = net(), net(8)
    scheme = kdx.Offline(student, teacher, knowledge=hints())
    own = set(vars(scheme))
    data = DATA if end is Interrupted else [*DATA, (torch.randn(8, 99), torch.zeros(8, dtype=torch.int64))]
    with pytest.raises(end):
        kdx.fit(scheme, data, device="cpu", mixed_precision="bf16", observers=[Stop(1)] if end is Interrupted else [])
    assert hooks(student) == hooks(teacher) == []
    assert set(vars(scheme)) == own


def test_the_scheme_goes_on_after_a_run() -> None:
    torch.manual_seed(0)
    scheme = kdx.Offline(net(), net(8), knowledge=hints())
    kdx.fit(scheme, DATA, device="cpu")
    twin = copy.deepcopy(scheme)
    first = scheme(DATA[0])
    assert set(first.terms) == {"task", "kd", "hint"}
    assert torch.equal(twin(DATA[0]).total, first.total)
    kdx.fit(scheme, DATA, device="cpu")


def test_a_second_run_has_the_precision_it_was_given() -> None:
    dtypes = []

    class Seen(nn.Linear):
        def forward(self, x):
            found = super().forward(x)
            dtypes.append(found.dtype)
            return found

    scheme = kdx.Supervised(Seen(4, 3))
    for precision, expected in (("no", torch.float32), ("bf16", torch.bfloat16), ("no", torch.float32)):
        kdx.fit(scheme, DATA[:1], device="cpu", mixed_precision=precision)
        assert dtypes[-1] == expected


def test_modes_are_those_from_before() -> None:
    student = net().eval()
    kdx.fit(kdx.Supervised(student), DATA, device="cpu", evaluate=DATA)
    assert not any(module.training for module in student.modules())
    assert student[1].num_batches_tracked == len(DATA)  # it was trained in training mode all the same
    student.train()
    kdx.fit(kdx.Supervised(student), DATA, device="cpu", evaluate=DATA)
    assert all(module.training for module in student.modules())
