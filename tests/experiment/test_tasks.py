"""Recipes of every task: splits, hidden labels, the check of the models, runs from end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import kdx
from kdx.errors import KdxError, RecipeError
from kdx.experiment.data import ExperimentData
from kdx.experiment.experiment import Experiment
from kdx.experiment.recipe_files import check_recipe
from kdx.experiment.rehearsal import rehearse
from kdx.hookspecs import hookimpl
from kdx.spec import Spec

pytestmark = pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning")
ROWS, NAN = 60, float("nan")


class Toy:
    """Rows for a task: images, or ids of tokens, with targets that follow from them."""

    model_options: ClassVar[tuple[str, ...]] = ("vocabulary",)
    vocabulary = 7

    def __init__(self, kind: str, split: str = "train") -> None:
        draw = torch.Generator().manual_seed(len(split))
        self.inputs = torch.randn(ROWS, 1, 4, 4, generator=draw)
        self.input_shape: tuple[int, ...] = (1, 4, 4)
        self.num_classes = 3
        mean = self.inputs.flatten(1)
        if kind == "pixels":
            self.targets = torch.bucketize(self.inputs[:, 0], torch.tensor([-0.5, 0.5]))
            self.targets[:, 0] = -100
        elif kind == "labels":
            self.targets = (mean[:, :3] > 0).float()
            self.targets[0, 0] = NAN
        elif kind == "yes or no":
            self.num_classes, self.targets = 1, (mean[:, 0] > 0).long()
        elif kind == "values":
            self.num_classes, self.targets = 2, mean[:, :2] * 3
            self.targets[0] = NAN
        elif kind == "tokens":
            self.inputs = torch.randint(1, self.vocabulary, (ROWS, 5), generator=draw)
            self.inputs[::2, 3:] = 0
            self.input_shape, self.targets = (5,), (self.inputs % 3).masked_fill(self.inputs == 0, -100)
        else:
            self.targets = mean.argmax(1) % 3
        if kind == "two":
            pixels, values = Toy("pixels", split), Toy("values", split)
            self.targets = {"seg": pixels.targets, "depth": values.targets}
            self.num_classes = {"seg": 3, "depth": 2}

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        if isinstance(self.targets, dict):
            return self.inputs[row], {name: each[row] for name, each in self.targets.items()}
        return self.inputs[row], self.targets[row]


class Net(nn.Module):
    """Outputs ``[N, *shape]`` from all inputs; ``each``: from every pixel by itself."""

    def __init__(self, num_classes: int = 3, input_shape: tuple[int, ...] = (1, 4, 4), *, each: bool = False) -> None:
        super().__init__()
        self.net = nn.Conv2d(1, num_classes, 1) if each else nn.Sequential(nn.Flatten(), nn.Linear(16, num_classes))

    def forward(self, x):
        return self.net(x)


class Pair(nn.Module):
    """Two heads: outputs for every pixel, and for each image."""

    def __init__(
        self, num_classes: dict[str, int], input_shape: tuple[int, ...] = (1, 4, 4), *, wrong: int = 0
    ) -> None:
        super().__init__()
        self.seg, self.depth = Net(num_classes["seg"] + wrong, each=True), Net(num_classes["depth"])

    def forward(self, x):
        return {"seg": self.seg(x), "depth": self.depth(x)}


class Tagger(nn.Module):
    """Outputs ``[N, L, C]`` from ids."""

    def __init__(self, vocabulary: int, *, num_classes: int = 3, input_shape: tuple[int, ...] = (5,)) -> None:
        super().__init__()
        self.net = nn.Embedding(vocabulary, num_classes)

    def forward(self, x):
        return self.net(x)


@pytest.fixture(autouse=True)
def toys(plugged):
    """Registers the components of this file."""

    class Plugin:
        @hookimpl
        def kdx_datasets(self):
            return [Spec("toy", f"{__name__}:Toy", "for a test")]

        @hookimpl
        def kdx_models(self):
            return [Spec(name, f"{__name__}:{name.title()}", "for a test") for name in ("net", "pair", "tagger")]

    plugged(Plugin(), "toys")


TASKS = {
    "segmentation": ("pixels", {"name": "net", "each": True}, "soft-targets"),
    "multi-label": ("labels", "net", "sigmoid-targets"),
    "binary": ("yes or no", "net", "sigmoid-targets"),
    "regression": ("values", "net", "logits"),
    "token-classification": ("tokens", "tagger", "soft-targets"),
    "classification": ("classes", "net", "soft-targets"),
}


def recipe(task: str):
    kind, model, knowledge = TASKS[task]
    train = {"epochs": 2, "batch_size": 16, "optimizer": {"name": "AdamW", "lr": 0.1}}
    given = {
        "threads": 1,
        "device": "cpu",
        "data": {"dataset": {"name": "toy", "kind": kind}, "validation": 12, "labelled": 12},
        "teacher": {"model": model, "train": train},
        "student": {"model": model},
        "task": {"name": task},
        "knowledge": {"kd": {"name": knowledge, "void": False} if kind in ("pixels", "tokens") else knowledge},
        "train": train,
    }
    return check_recipe(given)


@pytest.mark.parametrize("task", list(TASKS))
def test_a_recipe_of_every_task_runs(task: str, tmp_path: Path) -> None:
    summary = kdx.run(recipe(task), folder=tmp_path / "run")
    made = kdx.make("task", task)
    quality = {name: stage["test"][summary["metric"]] for name, stage in summary["stages"].items()}
    assert summary["metric"] == made.metric
    difference = quality["distilled"] - quality["alone"]
    wanted = 100 * difference if made.share else -difference
    assert summary["gain"] == pytest.approx(wanted)
    for name in quality:
        history = kdx.observers.read_metrics(tmp_path / "run" / name / "metrics.jsonl")
        key = f"eval/student/{made.metric}"
        values = {row["epoch"]: row[key] for row in history if key in row}
        best = (max if made.higher_is_better else min)(values.values())
        assert values[summary["stages"][name]["epoch"]] == best
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("task", list(TASKS))
def test_a_hidden_label_is_hidden_in_all_of_its_row(task: str) -> None:
    data, made = ExperimentData(recipe(task)), kdx.make("task", task)
    assert (len(data.all), len(data.few), len(data.labelled), len(data.validation)) == (48, 48, 12, 12)
    shown = made.labelled(data.few.targets).reshape(48, -1).any(1)
    assert int(shown.sum()) == 12
    torch.testing.assert_close(data.few.targets[shown], data.all.targets[shown], equal_nan=True)
    torch.testing.assert_close(data.labelled.targets, data.all.targets[shown], equal_nan=True)
    assert data.few.targets.dtype == data.all.targets.dtype
    assert not set(data.all.indices.tolist()) & set(data.validation.indices.tolist())
    batch = next(iter(data.training(data.few, 16)))
    assert batch.targets.dtype == data.all.targets.dtype
    assert list(batch.targets.shape) == [16, *data.all.targets.shape[1:]]
    places = [data.few.indices.tolist().index(row) for row in batch.index]
    torch.testing.assert_close(batch.targets, data.few.targets[places], equal_nan=True)


@pytest.mark.parametrize(
    ("task", "model", "message"),
    [
        ("segmentation", "net", r"model \(net\): task: .*for outputs \[1, 3\] expected class"),
        (
            "regression",
            {"name": "net", "each": True},
            r"model \(net\): task: Regression: expected targets of",
        ),
        ("multi-label", {"name": "net", "each": True}, r"outputs \[1, 3, 4, 4\] and targets \[1, 3\]"),
        ("binary", {"name": "net", "each": True}, r"one logit for each sample, .* got \[1, 1, 4, 4\]"),
    ],
)
def test_a_model_that_does_not_suit_the_task_is_found_before_the_training(task, model, message, tmp_path) -> None:
    wrong = check_recipe(recipe(task).dump() | {"student": {"model": model}})
    with pytest.raises(KdxError, match=message):
        Experiment(wrong, tmp_path / "run").run()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("task", "data", "message"),
    [
        ("segmentation", {"augment": {}}, "it changes inputs and not the targets of the task 'segm"),
        ("token-classification", {"augment": {}}, r"it changes images \[C, H, W\], .* \[5\]; remove it"),
        (
            "multi-label",
            {"novel_classes": [1]},
            "data.novel_classes: rows have no classes under the task 'multi-l",
        ),
    ],
)
def test_data_sections_that_do_not_suit_the_task_are_refused(task, data, message) -> None:
    given = recipe(task).dump()
    with pytest.raises(RecipeError, match=message):
        ExperimentData(check_recipe(given | {"data": given["data"] | data}))


@pytest.mark.parametrize("task", ["segmentation", "token-classification"])
@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"knowledge": {"kd": "soft-targets"}}, r"knowledge\.kd \(soft-targets\): SoftTargets"),
        (
            {"knowledge": {"kd": {"name": "logit-standardisation", "around": "jsd"}}},
            r"knowledge\.kd \(logit-standardisation\): JSD",
        ),
        ({"knowledge": {"kd": "cwd"}}, r"knowledge\.kd \(cwd\): CWD"),
        ({"scheme": "ema-teacher", "teacher": None, "knowledge": None}, r"scheme \(ema-teacher\): SoftTargets"),
        (
            {"assistant": "born-again", "teacher": None, "knowledge": {"kd": "logits"}},
            r"knowledge\.kd \(logits\): Logits",
        ),
    ],
)
def test_hidden_labels_are_not_taken_for_void(task: str, change: dict, where: str, tmp_path: Path) -> None:
    """A hidden label is -100, as void is: whether the teacher teaches there is said, or asked for."""
    given = {key: value for key, value in (recipe(task).dump() | change).items() if value is not None}
    asked = rf"stage \S+: {where}: data.labelled hides labels as -100, which to the task '{task}' is void"
    with pytest.raises(RecipeError, match=asked):
        Experiment(check_recipe(given), tmp_path / "run").run()
    assert not (tmp_path / "run").exists()
    whole = check_recipe(given | {"data": given["data"] | {"labelled": None}, "controls": []})
    rehearse(Experiment(whole, tmp_path / "whole").assembly)


def test_a_scheme_that_pairs_rows_of_one_class_needs_classes(tmp_path: Path) -> None:
    given = recipe("segmentation").dump() | {"scheme": "cs-kd", "teacher": None, "knowledge": {}}
    given["data"]["labelled"] = None
    with pytest.raises(KdxError, match="puts rows of one class into a batch, and the task Segmentation has no class"):
        Experiment(check_recipe(given), tmp_path / "run").run()


def test_a_model_takes_what_the_data_set_says_and_no_recipe_gives_it() -> None:
    given = recipe("token-classification").dump()
    with pytest.raises(RecipeError, match="unknown option 'vocabulary'"):
        check_recipe(given | {"student": {"model": {"name": "tagger", "vocabulary": 9}}})
    assert ExperimentData(check_recipe(given)).facts == {"vocabulary": 7}


def two_heads(**model: Any):
    given = recipe("segmentation").dump()
    net = {"name": "pair", **model}
    heads = {"seg": {"task": "segmentation", "weight": 1.0}, "depth": {"task": {"name": "regression", "loss": "l1"}}}
    at = {name: {"student": f"logits[{name}]", "teacher": f"logits[{name}]"} for name in heads}
    knowledge = {
        "kd": {"name": "soft-targets", "void": False, **at["seg"]},
        "sizes": {"name": "logits", "weight": 0.1, **at["depth"]},
    }
    given["data"] |= {"dataset": {"name": "toy", "kind": "two"}}
    given["teacher"] |= {"model": net, "reuse": False}
    return given | {"student": {"model": net}, "task": {"name": "heads", "heads": heads}, "knowledge": knowledge}


def test_a_recipe_of_several_heads_runs(tmp_path: Path) -> None:
    summary = kdx.run(check_recipe(two_heads()), folder=tmp_path / "run")
    assert (summary["metric"], summary["metric_label"]) == ("seg/miou", "mean IoU of seg")
    found = summary["stages"]["distilled"]["test"]
    assert {"seg/miou", "depth/rmse", "depth/mae"} <= found.keys()
    assert (tmp_path / "run" / "report.html").exists()


def test_labels_are_hidden_in_every_head() -> None:
    data = ExperimentData(check_recipe(two_heads()))
    made = data.task
    shown = made.labelled(data.few.targets)
    assert (int(shown.sum()), len(data.labelled)) == (12, 12)
    for name, each in data.labelled.targets.items():
        torch.testing.assert_close(each, data.all.targets[name][shown], equal_nan=True)
    batch = next(iter(data.training(data.few, 16)))
    assert {name: list(each.shape) for name, each in batch.targets.items()} == {"seg": [16, 4, 4], "depth": [16, 2]}


def test_a_head_of_another_width_than_its_data_is_found_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(KdxError, match=r"head 'seg': task: expected 3 outputs on axis 1 .* got \[1, 4, 4, 4\]"):
        Experiment(check_recipe(two_heads(wrong=1)), tmp_path / "run").run()


def test_knowledge_of_a_head_says_what_hidden_labels_are_to_it(tmp_path: Path) -> None:
    given = two_heads()
    del given["knowledge"]["kd"]["void"]
    with pytest.raises(KdxError, match=r"kd \(soft-targets\): SoftTargets: data.labelled hides labels as -100"):
        Experiment(check_recipe(given), tmp_path / "run").run()
