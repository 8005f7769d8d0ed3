"""The store of a causal language model's teacher, end to end: in a recipe, by ``kdx cache``, and written elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import kdx
from kdx.cli.app import app
from kdx.errors import RecipeError, StoreError
from kdx.experiment import ExperimentData, load_recipe
from kdx.experiment.recipe_files import plugins_beside
from kdx.ops import SparseTargets
from kdx.store import Store

CODE = '''
import torch
from torch import nn


class Rows(torch.utils.data.Dataset):
    """Sums, a character a token, padded behind."""

    def __init__(self, split: str) -> None:
        texts = [f"{a}+{b}={a + b}" for a in range(3, 30, 2) for b in range(4)]
        letters = sorted({letter for text in texts for letter in text})
        self.rows = [torch.tensor([1 + letters.index(letter) for letter in text]) for text in texts]
        self.rows = self.rows[:40] if split == "train" else self.rows[40:]
        self.targets = torch.stack([nn.functional.pad(row, (0, 7 - len(row)), value=-100) for row in self.rows])
        self.num_classes, self.input_shape = 1 + len(letters), (7,)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int):
        ids = self.targets[row].clamp(min=0)
        return {"input_ids": ids, "attention_mask": (self.targets[row] != -100).long()}, self.targets[row]


class Net(nn.Module):
    """A recurrent language model."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...], width: int = 8) -> None:
        super().__init__()
        self.embed, self.body = nn.Embedding(num_classes, width), nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, num_classes)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.embed(input_ids))[0])
'''
RECIPE = """
data: {dataset: {name: "lm.py:Rows"}, validation: 8}
task: {name: causal-lm, weight: 0.5}
teacher:
  model: {name: "lm.py:Net", width: 12}
  train: {epochs: 1}
  store: {what: WHAT, views: 1, dtype: fp32}
student: {model: {name: "lm.py:Net"}}
knowledge: {kd: {name: soft-targets, temperature: 2.0}}
controls: []
train: {epochs: 2}
device: cpu
"""


WHAT = {"logits": "logits", "most": "topk:12@2"}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("lm.py").write_text(CODE)
    for name, what in WHAT.items():
        Path(f"{name}.yaml").write_text(RECIPE.replace("WHAT", json.dumps(what)))
    return tmp_path


def data_of(name: str) -> ExperimentData:
    plugins = plugins_beside(name)
    return ExperimentData(load_recipe(name, plugins=plugins), plugins)


def test_a_recipe_stores_its_teacher_once_without_padding_and_learns_from_it(folder) -> None:
    view, ends = data_of("logits.yaml").few, {}
    for name in WHAT:
        summary = kdx.run(f"{name}.yaml", folder=name, report=False)
        ends[name] = summary["stages"]["distilled"]["validation"]["cross_entropy"]
        store = Store(folder / name / "teacher" / "store")
        stored = sum(len(store._shard(k)[store.manifest.ragged[0]][0]) for k in range(store.manifest.shards))
        assert stored == sum(len(view.dataset.rows[row]) for row in view.indices) < 7 * len(view)
    assert isinstance(store.read(store.index[:2]).response("logits"), SparseTargets)
    assert ends["most"] == pytest.approx(ends["logits"], abs=1e-3)  # all but one class


def test_a_recipe_says_the_head_of_the_hidden_states_that_it_stores(folder) -> None:
    given = {"teacher.store.what": "hidden", "teacher.head": {"hidden": "head:input", "layer": "head"}}
    kdx.run("logits.yaml", folder="run", report=False, **given)
    store = Store("run/teacher/store")
    held = store.read(store.index[:2]).response("logits")
    assert isinstance(held, kdx.LinearLogits)
    assert held.hidden.shape[-1] == 12
    with pytest.raises(RecipeError, match=r"remove head, or store the hidden states \(what: hidden\)"):
        load_recipe("logits.yaml", given | {"teacher.store.what": "topk:3"}, plugins=plugins_beside("logits.yaml"))


def test_what_another_program_said_teaches_a_recipe_without_a_teachers_model(folder) -> None:
    data, records = data_of("logits.yaml"), []
    for row in reversed(range(len(data.whole))):
        ids = data.whole.rows[row]
        places: list[object] = [None]
        for token in ids[1:].tolist():
            logprobs = torch.randn(data.shape["num_classes"]).log_softmax(0)
            places.append({str(c): {"logprob": float(logprobs[c])} for c in {*range(5), token}})
        records.append({"index": row, "prompt_token_ids": ids.tolist(), "prompt_logprobs": places})
    Path("said.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    runner, command = CliRunner(), ["cache", "logits.yaml", "--out", "large", "--from", "said.jsonl"]
    done = runner.invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "topk:6@1 of 32 samples in 1 views" in done.output
    assert "teacher.store.folder=large" in done.output
    before, _, after = RECIPE.replace("temperature: 2.0", "temperature: 1.0").partition("teacher:")
    after = after[after.index("student:") :]
    Path("told.yaml").write_text(f"{before}teacher: {{store: {{folder: large}}}}\n{after}")
    summary = kdx.run("told.yaml", folder="run", report=False)
    assert list(summary["stages"]) == ["distilled"]
    assert runner.invoke(app, ["verify", "run"]).exit_code == 0
    Path("lm.py").write_text(CODE.replace("[:40]", "[:39]"))
    with pytest.raises(StoreError, match=r"data.samples: stored 40"):
        kdx.run("told.yaml", folder="other", report=False)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({}, r"teacher.*: give the teacher's model, or in store.folder a store of what it said"),
        ({"teacher.store.folder": "x"}, r"there is nothing to train or to load; remove train and weights"),
        (
            {"teacher.store.folder": "x", "teacher.train": "none", "assistant.name": "takd"},
            r"teacher.model: assistant 'takd' plans from the teacher's model",
        ),
    ],
)
def test_a_teacher_without_a_model_needs_a_store_and_nothing_else(folder, overrides, message) -> None:
    with pytest.raises(RecipeError, match=message):
        kdx.run("logits.yaml", folder="run", **({"teacher.model": None} | overrides))


def test_options_of_an_import_are_refused_without_one(folder) -> None:
    runner = CliRunner()
    for options, message in (
        (["--k", "3"], "--k goes with --from FILE"),
        (["--from", "lm.py", "--views", "2"], "leave out"),
    ):
        done = runner.invoke(app, ["cache", "logits.yaml", "--out", "x", *options])
        assert done.exit_code != 0
        assert message in done.output
