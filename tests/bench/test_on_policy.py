"""The benchmark of on-policy training: its rows of words, what it measures, and that its table is that of its rows."""

from __future__ import annotations

import copy
import csv
from pathlib import Path

import pytest
import torch

from bench import on_policy

ROOT = Path(__file__).parents[2]


def test_a_word_is_a_row_whose_first_letters_are_the_prompt() -> None:
    ids, targets = on_policy.rows(["abcd"])[0]
    assert ids[:6].tolist() == [2, 3, 4, 5, on_policy.END, on_policy.PAD]
    assert targets[:6].tolist() == [-100, -100, 4, 5, on_policy.END, -100]
    assert on_policy.spelt(ids) == "abcd"
    assert on_policy.spelt(ids[:4]) == ""
    assert not set(on_policy.words("train")) & set(on_policy.words("test"))


def test_the_teacher_is_at_no_distance_from_itself_and_another_model_is() -> None:
    torch.manual_seed(0)
    teacher, other = on_policy.decoder(8, 1, 0), on_policy.decoder(8, 1, 1)
    words = on_policy.words("test")[:20]
    found = on_policy.measure(copy.deepcopy(teacher), teacher, on_policy.rows(words), set(words))
    assert found["reverse_kl"] == pytest.approx(0, abs=1e-9)
    assert on_policy.measure(other, teacher, on_policy.rows(words), set(words))["reverse_kl"] > 0.01


def test_the_committed_rows_are_of_three_seeds_and_the_table_is_made_from_them() -> None:
    with on_policy.FILE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    arms = ("teacher", *on_policy.ARMS)
    assert {(row["arm"], row["seed"]) for row in rows} == {(arm, seed) for arm in arms for seed in "012"}
    assert on_policy.table() in (ROOT / "bench" / "README.md").read_text()
