"""A recipe whose models hold their logits as hidden states and a head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import kdx
from kdx.errors import RecipeError
from kdx.experiment.experiment import Experiment
from kdx.experiment.recipe_files import check_recipe
from kdx.hookspecs import hookimpl
from kdx.registry import Plugins
from kdx.spec import Spec

HEAD = {"hidden": "fc:input", "layer": "fc"}


class Rows(torch.utils.data.Dataset):
    """Rows of a pattern, each token its own target."""

    def __init__(self, split: str) -> None:
        draws = torch.Generator().manual_seed(len(split))
        starts = torch.randint(7, (80, 1), generator=draws)
        self.targets = (starts + torch.arange(8)) % 7
        self.num_classes, self.input_shape = 7, (8,)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.targets[row], self.targets[row]


class Plugin:
    @hookimpl
    def kdx_datasets(self):
        return [Spec("rows", f"{__name__}:Rows", "for a test")]


def recipe_of(**changes: Any):
    made = Plugins(entries=(), blocked=(), trace=False)
    made.register(Plugin(), "own")
    model = {"name": "token-decoder", "dim": 8, "depth": 1, "heads": 2}
    given = {
        "threads": 1,
        "data": {"dataset": "rows", "validation": 20},
        "task": {"name": "causal-lm", "weight": 0.5},
        "teacher": {"model": model, "reuse": False, "train": {"epochs": 1}, "head": HEAD},
        "student": {"model": model, "head": HEAD},
        "knowledge": {"kd": {"name": "soft-targets", "temperature": 1.0}},
        "controls": ["alone", "label-smoothing"],
        "train": {"epochs": 1, "batch_size": 20},
    }
    return check_recipe({**given, **changes}, plugins=made), made


@pytest.mark.filterwarnings("ignore::kdx.experiment.experiment.WeakTeacherWarning")
def test_a_recipe_says_that_no_logits_are_held_and_measures_the_same(tmp_path: Path) -> None:
    asked = []
    for name, changes in (("head", {}), ("whole", {"teacher": None, "student": None})):
        recipe, plugins = recipe_of()
        if name == "whole":
            without = {key: dict(recipe.model_dump()[key], head=None) for key in ("teacher", "student")}
            recipe, plugins = recipe_of(**without)
        assert (recipe.student.head is None) == bool(changes)
        asked.append(Experiment(recipe, tmp_path / name, report=False, plugins=plugins).run()["stages"])
    held, whole = asked
    assert held.keys() == {"teacher", "alone", "label-smoothing", "distilled"}
    for stage, result in whole.items():
        assert held[stage]["test"] == pytest.approx(result["test"], rel=2e-3), stage


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"knowledge": {"kd": {"name": "dkd"}}}, r"knowledge 'kd' \(DKD\) reads the tensor of the student's 'logits'"),
        ({"task": {"name": "token-classification"}}, r"task: .* reads the tensor of the student's logits"),
        ({"student": {"model": "token-decoder", "head": "auto"}}, r"does not say where its hidden states .* are"),
        ({"scheme": "mutual", "teacher": None}, r"it takes no student_output.*remove student.head"),
    ],
)
def test_what_does_not_go_with_a_head_is_refused_before_training(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    recipe, plugins = recipe_of(**change)
    with pytest.raises((RecipeError, ValueError, kdx.KdxError), match=message):
        Experiment(recipe, tmp_path / "run", report=False, plugins=plugins).run()
    assert not list((tmp_path / "run").glob("*/metrics.jsonl"))


def test_a_head_beside_a_store_is_refused() -> None:
    teacher = {"model": "token-decoder", "head": HEAD, "store": {"what": "topk:2@1"}}
    with pytest.raises(RecipeError, match=r"store: stored logits are read as they were written.*remove head"):
        recipe_of(teacher=teacher)


class Padded(torch.nn.Module):
    """A model with more tokens than the data, as those of which a vocabulary was padded."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...], more: int = 0) -> None:
        super().__init__()
        made = max(num_classes, num_classes + more)
        self.inner = kdx.models.TokenDecoder(8, depth=1, heads=2, num_classes=made, input_shape=input_shape)
        self.given = num_classes + more

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(ids)[..., : self.given]


class PaddedPlugin:
    @hookimpl
    def kdx_models(self):
        return [Spec("padded", f"{__name__}:Padded", "for a test")]


@pytest.mark.filterwarnings("ignore::kdx.experiment.experiment.WeakTeacherWarning")
def test_models_of_padded_vocabularies_are_compared_in_the_tokens_that_the_data_have(tmp_path: Path) -> None:
    def run(folder: str, teacher: int, student: int, **options: Any) -> Any:
        _, plugins = recipe_of()
        plugins.register(PaddedPlugin(), "padded")
        recipe = check_recipe(
            {
                "threads": 1,
                "data": {"dataset": "rows", "validation": 20},
                "task": {"name": "causal-lm", "weight": 0.5},
                "teacher": {"model": {"name": "padded", "more": teacher}, "reuse": False, "train": {"epochs": 1}},
                "student": {"model": {"name": "padded", "more": student}},
                "knowledge": {"kd": {"name": "soft-targets", "temperature": 1.0, **options}},
                "train": {"epochs": 1, "batch_size": 20},
            },
            plugins=plugins,
        )
        return Experiment(recipe, tmp_path / folder, report=False, plugins=plugins).run()

    stages = run("padded", teacher=5, student=2, vocabulary=7)["stages"]
    assert stages["distilled"]["test"]["cross_entropy"] > 0
    with pytest.raises(RecipeError, match=r"vocabulary="):
        run("refused", teacher=5, student=2)
    with pytest.raises(
        RecipeError, match=r"expected 7 outputs or more on axis 2 for one sample of the data, got \[1, 8, 6\]"
    ):
        run("narrow", teacher=0, student=-1)
