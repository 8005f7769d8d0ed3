"""What is wrong with a recipe and only its parts can tell, told before anything is trained."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import nn

import kdx
from kdx.errors import CaptureError, KdxError, RecipeError, StoreError
from kdx.experiment.experiment import Experiment
from kdx.experiment.store_command import cache_teacher
from kdx.hookspecs import hookimpl
from kdx.ref import Ref
from kdx.schemes.phase import Phase
from kdx.spec import Spec
from kdx.stage import Stage, Term
from tests.experiment.tiny import TINY, recipe


class Trained(AssertionError):
    """A step was taken."""


class NoStep:
    @hookimpl
    def kdx_step_end(self) -> None:
        raise Trained


def stored(what: str | list[str]) -> dict:
    return {**TINY["teacher"], "store": {"what": what, "views": 1}}


HINT = {"name": "hint", "student": "hidden1", "teacher": "hidden1"}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"knowledge": {"soft": {"name": "soft-targets", "temperature": 0.0}}},
            RecipeError,
            r"stage distilled: knowledge\.soft \(soft-targets\): temperature must be",
        ),
        ({"teacher": stored("topk:99")}, StoreError, "topk:99 wants more classes than the teacher's 10"),
        ({"teacher": stored("features:hiden1")}, CaptureError, "hiden1"),
        (
            {"teacher": stored("logits"), "knowledge": {"hint": HINT}},
            RecipeError,
            "knowledge 'hint': tap 'hidden1' is not in the store",
        ),
        (
            {"knowledge": {"hint": {**HINT, "student": "hidden7"}}},
            RecipeError,
            r"stage distilled: scheme \(offline\): knowledge 'hint': .*hidden7",
        ),
        (
            {"scheme": {"name": "ps-kd", "alpha": 2.0}, "teacher": None},
            RecipeError,
            r"stage distilled: scheme \(ps-kd\): alpha must be >= 0 and <= 1, got 2",
        ),
        (
            {"student": {"model": {"name": "vit", "dim": 10, "heads": 3}}},
            RecipeError,
            r"model \(vit\): dim must be a multiple of heads",
        ),
        ({"train": {"optimizer": {"name": "Adamm"}}}, KdxError, "torch has no optimizer named 'Adamm'"),
        (
            {"train": {"optimizer": {"name": "SGD", "momentun": 0.9}}},
            RecipeError,
            "stage alone: train: optimizer SGD has no option 'momentun'",
        ),
        (
            {"train": {"schedule": {"name": "OneCycleLR"}}},
            RecipeError,
            "stage alone: train: .*max_lr",
        ),
        ({"student": {**TINY["student"], "weights": "nowhere.safetensors"}}, KdxError, r"nowhere\.safetensors"),
    ],
)
def test_what_only_a_constructor_finds_is_found_before_anything_is_trained_or_written(
    change, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        Experiment(recipe(**change), tmp_path / "run", [NoStep()]).run()
    assert not (tmp_path / "run").exists()


def test_every_stage_of_a_plan_is_tried(planned, tmp_path: Path) -> None:
    student = Ref("mlp", hidden=[8, 8])
    stages = [
        Stage("first", "assistant", student, ("teacher",)),
        Stage(
            "distilled",
            "distilled",
            student,
            ("first",),
            start="first",
            knowledge={"hint": Term("hint", student="x", teacher="hidden1")},
        ),
    ]
    with pytest.raises(RecipeError, match=r"stage distilled: scheme \(offline\): knowledge 'hint'"):
        Experiment(recipe(assistant=planned(stages)), tmp_path / "run", [NoStep()]).run()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"knowledge": {"kd": {"name": "soft-targets", "temperature": -1.0}}},
            r"knowledge\.kd \(soft-targets\): temperature",
        ),
        ({"train": {"optimizer": {"name": "Adamm"}}}, "torch has no optimizer named 'Adamm'"),
        ({"teacher": stored("topk:99")}, "topk:99 wants more classes"),
        ({}, "Trained"),  # nothing is wrong: the observer fails at the teacher's first step
    ],
)
def test_of_a_student_made_from_its_trained_teacher_everything_but_the_student_is_tried(
    change, message: str, tmp_path: Path
) -> None:
    derived = {"model": {"name": "derived", "how": "width", "params": 0.5}}
    with pytest.raises(KdxError, match=message):
        Experiment(recipe(student=derived, **change), tmp_path / "run", [NoStep()]).run()
    assert (tmp_path / "run").exists() == (not change)


def test_several_students_that_are_not_known_yet_are_tried_with_one_store(planned, tmp_path: Path) -> None:
    student = Ref("derived", how="width", params=0.5)
    stages = [
        Stage("first", "assistant", student, ("teacher",)),
        Stage("distilled", "distilled", student, ("teacher",)),
    ]
    given = recipe(assistant=planned(stages), teacher=stored("logits"), controls=[])
    with pytest.raises(KdxError, match="Trained"):  # nothing is wrong
        Experiment(given, tmp_path / "run", [NoStep()]).run()


@pytest.mark.parametrize(
    "scheme", [{"name": "offline"}, {"name": "mutual"}, {"name": "cs-kd"}, {"name": "ema-teacher"}]
)
def test_every_stage_is_tried_on_a_few_rows(scheme, monkeypatch, tmp_path: Path) -> None:
    compare = kdx.SoftTargets.compare
    monkeypatch.setattr(kdx.SoftTargets, "compare", lambda *args: compare(*args).detach())
    parts = {} if scheme["name"] == "offline" else {"teacher": None}
    knowledge = {"kd": {"name": "soft-targets"}}
    with pytest.raises(RecipeError, match=r"stage distilled: .*knowledge 'kd' \(SoftTargets\) teaches nothing"):
        Experiment(recipe(scheme=scheme, knowledge=knowledge, **parts), tmp_path / "run", [NoStep()]).run()
    assert not (tmp_path / "run").exists()


def test_weights_that_a_later_teacher_shall_be_loaded_from_are_looked_at_first(tmp_path: Path) -> None:
    small = {"model": {"name": "mlp"}, "weights": "nowhere.safetensors"}
    given = recipe(scheme={"name": "dense-guidance"}, teachers={"small": small})
    with pytest.raises(KdxError, match=r"nowhere\.safetensors"):
        Experiment(given, tmp_path / "run", [NoStep()]).run()
    assert not (tmp_path / "run").exists()


def test_a_run_in_the_way_is_left_where_it_is_by_a_recipe_that_cannot_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("old")
    with pytest.raises(StoreError):
        Experiment(recipe(teacher=stored("topk:99")), tmp_path / "run").run(force=True)
    assert (tmp_path / "run" / "recipe.yaml").read_text() == "old"


def test_kdx_cache_finds_what_cannot_be_stored_before_the_teacher_is_trained(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="topk:99 wants more classes"):
        cache_teacher(
            recipe(), tmp_path / "out", teachers=tmp_path / ".teachers", observers=[NoStep()], what="topk:99", views=1
        )
    assert not (tmp_path / "out").exists()


def test_trying_draws_no_random_number(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    Experiment(recipe(teacher=stored("sample:3")), tmp_path / "run")._claim(ExitStack(), resume=False, force=False)
    assert torch.get_rng_state().equal(state)


class Idle(kdx.Supervised):
    """A scheme with a phase that trains nothing."""

    @property
    def phases(self):
        return (*super().phases, Phase("idle", self.terms, ()))


def test_a_phase_that_cannot_be_trained_is_found_before_anything_is_trained(plugged, tmp_path: Path) -> None:
    class Plugin:
        @hookimpl
        def kdx_schemes(self):
            return [Spec("idle", f"{__name__}:Idle", "for a test")]

    plugged(Plugin(), "idle")
    given = recipe(scheme="idle", teacher=None, knowledge={})
    with pytest.raises(RecipeError, match="stage distilled: train: phase 'idle' of Idle trains nothing"):
        Experiment(given, tmp_path / "run", [NoStep()]).run()
    assert not (tmp_path / "run").exists()


class Odd(nn.Module):
    """A model whose output is not that of a classifier of the data."""

    def __init__(self, gives: str, num_classes: int = 10, input_shape: tuple[int, ...] = (1, 8, 8)) -> None:
        super().__init__()
        self.gives = gives
        self.fc = nn.Linear(64, 7 if gives == "other classes" else num_classes)

    def forward(self, x):
        logits = self.fc(x.flatten(1))
        return {"other classes": logits, "a map": logits[:, :, None], "nothing": None}[self.gives]


class Counting(nn.Sequential):
    """A classifier that keeps more than tensors in its state dict."""

    def __init__(self, num_classes: int = 10, input_shape: tuple[int, ...] = (1, 8, 8)) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))

    def get_extra_state(self):
        return {"seen": 3}

    def set_extra_state(self, state):
        pass


def needing(num_classes: int = 10, input_shape: tuple[int, ...] = (1, 8, 8)) -> nn.Module:
    raise ModuleNotFoundError("this component needs timm, which is not installed: `pip install timm`", name="timm")


def narrow(width: int = 3) -> nn.Module:
    return nn.Linear(width, width)


@pytest.fixture
def odd_models(plugged):
    """Registers the models of this file."""

    class Plugin:
        @hookimpl
        def kdx_models(self):
            targets = {"odd": "Odd", "counting": "Counting", "narrow": "narrow", "needing": "needing"}
            return [Spec(name, f"{__name__}:{target}", "for a test") for name, target in targets.items()]

    plugged(Plugin(), "odd-models")


@pytest.mark.usefixtures("odd_models")
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"name": "odd", "gives": "other classes"},
            r"model \(odd\): expected logits \[1, 10\] for one sample of the data, got \[1, 7\]",
        ),
        ({"name": "odd", "gives": "a map"}, r"expected logits \[1, 10\] for one sample of the data, got \[1, 10, 1\]"),
        ({"name": "counting"}, "weights of Counting: _extra_state is a dict, and safetensors hold"),
        ({"name": "odd", "gives": "nothing"}, "the model returned NoneType without logits"),
        (
            {"name": "narrow"},
            r"student.model \(narrow\): it has to take input_shape, which kdx gives; its parameters are width",
        ),
        (
            {"name": "needing"},
            r"model \(needing\): this component needs timm, which is not installed: `pip install timm`",
        ),
    ],
    ids=["other classes", "a map", "weights", "nothing", "parameters", "not installed"],
)
def test_a_model_that_does_not_fit_the_data_is_found_before_anything_is_trained(model, message, tmp_path: Path) -> None:
    with pytest.raises(KdxError, match=message):
        Experiment(recipe(student={"model": model}), tmp_path / "run", [NoStep()]).run()
    assert not (tmp_path / "run").exists()
