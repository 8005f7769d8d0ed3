"""An experiment takes its components from the registry that it is given."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

import kdx
from kdx.assistants.base import Assistant
from kdx.errors import RecipeError
from kdx.experiment.recipe_files import check_recipe
from kdx.experiment.store_command import cache_teacher
from kdx.hookspecs import hookimpl
from kdx.ref import Ref
from kdx.registry import Plugins
from kdx.spec import Spec
from kdx.stage import Stage, Term
from tests.experiment.tiny import TINY, recipe


def own_model(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))


class OwnTerm(kdx.SoftTargets):
    """Soft targets of a test."""


class OwnScheme(kdx.Offline):
    """Offline distillation of a test."""


class OwnPlan(Assistant):
    def plan(self, teacher: Ref, student: Ref) -> list[Stage]:
        own = {"scheme": Ref("own-scheme"), "knowledge": {"own": Term("own-term", weight=0.5)}}
        return [Stage("distilled", "distilled", student, ("teacher",), **own)]


def own_digits(split: str):
    return kdx.make("dataset", "digits", split=split)


class Plugin:
    @hookimpl
    def kdx_models(self):
        return [Spec("own-model", f"{__name__}:own_model", "for a test")]

    @hookimpl
    def kdx_datasets(self):
        return [Spec("own-digits", f"{__name__}:own_digits", "for a test")]

    @hookimpl
    def kdx_knowledge(self):
        return [Spec("own-term", f"{__name__}:OwnTerm", "for a test")]

    @hookimpl
    def kdx_schemes(self):
        return [Spec("own-scheme", f"{__name__}:OwnScheme", "for a test")]

    @hookimpl
    def kdx_assistants(self):
        return [Spec("own-plan", f"{__name__}:OwnPlan", "for a test")]


OWN = {
    **TINY,
    "data": {"dataset": {"name": "own-digits"}, "validation": 100},
    "student": {"model": "own-model"},
    "assistant": "own-plan",
}


@pytest.fixture
def plugins() -> Plugins:
    """A registry that nothing but the test knows."""
    made = Plugins(entries=(), blocked=(), trace=False)
    made.register(Plugin(), "own")
    return made


@pytest.mark.filterwarnings("ignore::kdx.assistants.gap.GapWarning")
@pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning")
def test_components_of_every_kind_come_from_the_registry_given(plugins, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'own-digits'"):
        check_recipe(OWN)
    checked = check_recipe(OWN, plugins=plugins)
    summary = kdx.run(checked, folder=tmp_path / "run", report=False, plugins=plugins)
    assert summary["stages"]["distilled"]["model"] == "own-model"
    assert "term/own" in (tmp_path / "run" / "distilled" / "metrics.jsonl").read_text()
    again = kdx.run(checked, folder=tmp_path / "run", resume=True, plugins=plugins)  # the recipe of the folder is read
    assert again == summary


def test_a_teacher_is_cached_from_the_registry_given(plugins, tmp_path: Path) -> None:
    teacher = {"model": "own-model", "train": {"epochs": 1, "batch_size": 256}}
    checked = check_recipe({**TINY, "teacher": teacher}, plugins=plugins)
    store = cache_teacher(checked, tmp_path / "out", teachers=tmp_path / "kept", plugins=plugins, views=1)
    assert store.views == 1


def test_a_run_without_a_report_draws_none(tmp_path: Path) -> None:
    given = recipe(controls=[], scheme="supervised", knowledge={}, teacher=None)
    for report in (False, True):
        folder = tmp_path / str(report)
        kdx.run(given, folder=folder, report=report)
        assert (folder / "report.html").exists() is report
