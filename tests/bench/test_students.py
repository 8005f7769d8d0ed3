"""The study of derived students: its recipes are sound, and its documents say what its rows say."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from bench import students
from kdx.experiment.recipe_files import check_recipe

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("how", students.STUDENTS)
def test_its_recipes_are_sound(how: str) -> None:
    for budget in students.STUDENTS[how]:
        recipe = check_recipe(students.recipe(how, budget, 1, 2))
        assert (recipe.threads, recipe.data.labelled, recipe.controls) == (1, 500, ["alone"])


def test_the_committed_rows_are_of_three_seeds_and_the_table_is_made_from_them() -> None:
    with students.FILE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = {
        (how, budget, arm, seed)
        for how, budgets in students.STUDENTS.items()
        for budget in budgets
        for arm in students.ARMS
        for seed in "012"
    } | {("teacher", "100%", "alone", seed) for seed in "012"}
    assert {(row["how"], row["budget"], row["arm"], row["seed"]) for row in rows} == expected
    assert students.table() in (ROOT / "bench" / "README.md").read_text()
    assert students.FILE.with_suffix(".png").stat().st_size > 10_000
