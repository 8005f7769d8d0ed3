"""Data, students and teachers of different tokenizers are refused before training."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import kdx

IDS = torch.randint(9, (8, 6), generator=torch.Generator().manual_seed(0))


class Rows(Dataset):
    """Rows of token ids of a tokenizer."""

    def __init__(self, tokenizer_id: str | None) -> None:
        if tokenizer_id:
            self.tokenizer_id = tokenizer_id

    def __len__(self) -> int:
        return len(IDS)

    def __getitem__(self, row: int):
        return IDS[row], IDS[row]


def model(tokenizer_id: str | None = None) -> nn.Module:
    made = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9))
    if tokenizer_id:
        made.tokenizer_id = tokenizer_id
    return made


def train(data: str | None, student: str | None, teacher: str | None, view=None):
    task = kdx.make("task", "causal-lm")
    taught = kdx.teachers.Frozen(model(teacher), view=view)
    distil = kdx.Offline(model(student), taught, task=task, knowledge={"kd": kdx.SoftTargets(1.0)})
    return kdx.fit(distil, DataLoader(Rows(data), batch_size=4), device="cpu", progress=False)


@pytest.mark.parametrize(
    ("data", "student", "teacher", "message"),
    [
        ("a", "a", "b", r"teacher \(Sequential\) has another tokenizer \(tokenizer_id b\) than the data \(a\)"),
        ("a", "b", None, r"student \(Sequential\) has another tokenizer \(tokenizer_id b\) than the data \(a\)"),
        (None, "a", "b", r"teacher \(Sequential\) .* than student \(Sequential\) \(a\): .* knowledge 'alm' or 'uld'"),
    ],
)
def test_another_tokenizer_is_named(data, student, teacher, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(data, student, teacher)


@pytest.mark.parametrize("said", [("a", "a", "a"), (None, None, None), ("a", None, "a"), (None, "a", None)])
def test_one_tokenizer_is_taken_and_so_is_none_that_is_said(said) -> None:
    assert train(*said).step == 2


def test_a_teacher_that_sees_its_own_view_may_have_its_own_tokenizer() -> None:
    assert train("a", "a", "b", view=lambda batch: batch.inputs).step == 2


def test_labels_beyond_the_vocabulary_are_named_before_the_first_step() -> None:
    rows = [(IDS[0], IDS[1]), (IDS[2], torch.full((6,), 9))]
    task = kdx.make("task", "causal-lm")
    student = model()
    before = student[0].weight.detach().clone()
    distil = kdx.Offline(student, model(), task=task, knowledge={"kd": kdx.SoftTargets(1.0)})
    with pytest.raises(ValueError, match=r"expected .*0 \.\. 8.*got.*9"):
        kdx.fit(distil, DataLoader(rows, batch_size=1), accumulate=2, device="cpu", progress=False)
    assert torch.equal(student[0].weight, before)
