"""Texts in the files of Hugging Face datasets: every form of a folder, in a recipe, and in a loader of one's own."""

import json
import signal
import sys

import pytest
import torch
from kdx_text.hf import HFTexts
from torch.utils.data import DataLoader

import kdx
from kdx.datasets import check_dataset
from kdx.errors import Interrupted

# of datasets and what it imports, and of a teacher that is trained for two epochs
pytestmark = pytest.mark.filterwarnings(
    "ignore:Cannot locate reference",
    "ignore:Cannot pickle",
    "ignore::DeprecationWarning",
    "ignore::ResourceWarning",
    "ignore::kdx.assistants.gap.WeakTeacherWarning",
)

TEXTS = ["the cat sleeps", "hot bread", "a dog barks at the cat", "the soup is hot"] * 10
LABELS = ["animal", "food"] * 20


def test_without_datasets_the_error_says_what_to_install(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"the data set hf needs datasets.*pip install datasets"):
        HFTexts(folder=tmp_path, tokenizer=tmp_path)


@pytest.fixture
def hf(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return datasets


@pytest.mark.parametrize("form", ["dict", "class-label", "folders", "parquet", "csv", "json", "jsonl"])
def test_every_form_of_a_folder_is_the_same_data_set(form, hf, tokenizer, tmp_path) -> None:
    rows = hf.Dataset.from_dict({"text": TEXTS, "label": LABELS})
    if form == "class-label":
        rows = rows.class_encode_column("label")
    folder = tmp_path / "data"
    folder.mkdir()
    if form in ("dict", "class-label"):
        hf.DatasetDict({"train": rows, "test": rows.select(range(8))}).save_to_disk(folder)
    for split, part in (("train", rows), ("test", rows.select(range(8)))):
        if form == "folders":
            part.save_to_disk(folder / split)
        elif form == "json":
            (folder / f"{split}.json").write_text(json.dumps(part.to_list()))
        elif form not in ("dict", "class-label"):
            getattr(part, {"parquet": "to_parquet", "csv": "to_csv", "jsonl": "to_json"}[form])(
                folder / f"{split}.{form}"
            )
    made = {split: HFTexts(split, folder=folder, tokenizer=tokenizer, length=8) for split in ("train", "test")}
    for each in made.values():
        check_dataset(each)
        assert each.classes == ("animal", "food")
    assert made["train"].targets.tolist() == [0, 1] * 20
    assert len(made["test"]) == 8
    assert made["test"].ids.equal(made["train"].ids[:8])


def test_what_is_missing_is_named(hf, tokenizer, tmp_path) -> None:
    folder, options = tmp_path / "data", {"folder": tmp_path / "data", "tokenizer": tokenizer}
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nothing is downloaded"):
        HFTexts(**options)
    plain = hf.Dataset.from_dict({"text": ["a", None], "label": ["x", "y"], "kind": ["x", None]})
    labelled = hf.Dataset.from_dict(
        {"text": ["a", "b"], "label": [0, -1]},
        features=hf.Features({"text": hf.Value("string"), "label": hf.ClassLabel(names=["x", "y"])}),
    )
    other = hf.Dataset.from_dict({"text": ["a"], "label": ["z"], "kind": ["x"]})
    hf.DatasetDict({"train": plain, "test": other, "hidden": labelled}).save_to_disk(folder)
    for given, error, message in [
        ({"split": "test", "test": "dev"}, FileNotFoundError, r"no split 'dev': .* but .*dataset_dict\.json"),
        ({"text": "body"}, ValueError, "train: there is no column 'body' among text, label, kind"),
        ({}, ValueError, "train, row 1: no 'text'"),
        ({"label": "kind"}, ValueError, "train, row 1: no 'kind'"),
        ({"split": "test"}, ValueError, "test: label 'z' does not occur in the training rows"),
        ({"split": "test", "test": "hidden"}, ValueError, "hidden, row 1: its label is -1, which is none"),
    ]:
        with pytest.raises(error, match=message):
            HFTexts(**options | given)


def test_a_recipe_names_it(hf, tokenizer, tmp_path) -> None:
    rows = hf.Dataset.from_dict({"sentence": TEXTS, "label": LABELS})
    hf.DatasetDict({"train": rows, "validation": rows.select(range(8))}).save_to_disk(tmp_path / "data")
    dataset = {"name": "hf", "folder": str(tmp_path / "data"), "tokenizer": str(tokenizer), "length": 8}
    values = {
        "threads": 1,
        "data": {"dataset": dataset | {"text": "sentence", "test": "validation"}, "validation": 8, "labelled": 8},
        "teacher": {"model": {"name": "embedding-bag", "width": 8}, "train": {"epochs": 2}},
        "student": {"model": {"name": "embedding-bag", "width": 4}},
        "knowledge": {"kd": "soft-targets"},
        "train": {"epochs": 2},
    }
    assert list(kdx.run(values, folder=tmp_path / "run", report=False)["stages"]) == ["teacher", "alone", "distilled"]


class Stop:
    """Stops a run as Ctrl-C does, in the middle of an epoch."""

    @kdx.hookimpl
    def kdx_step_end(self, step) -> None:
        if step == 5:
            signal.raise_signal(signal.SIGINT)


class Net(torch.nn.Module):
    """Takes the columns of a batch by name, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(3, 2)

    def forward(self, values):
        return self.fc(values)


@pytest.mark.parametrize("kind", ["rows", "iterable"])
def test_fit_takes_a_loader_of_such_rows_and_goes_on_exactly(kind, hf, tmp_path) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(64, 3, generator=generator)
    rows = hf.Dataset.from_dict({"values": values.tolist(), "label": (values.sum(1) > 0).long().tolist()})
    rows = rows.with_format("torch") if kind == "rows" else rows.to_iterable_dataset().with_format("torch")

    def start():
        torch.manual_seed(3)
        return kdx.Supervised(Net())

    def fitted(scheme, steps, **options):
        sgd = {"name": "SGD", "lr": 0.5}
        kdx.fit(scheme, DataLoader(rows, 16), steps=steps, seed=1, optimizer=sgd, schedule=None, **options)
        return scheme.student.state_dict()

    whole = fitted(start(), 12)
    with pytest.raises(Interrupted):
        fitted(start(), 12, folder=tmp_path / "run", observers=[Stop()])
    resumed = fitted(start(), 12, folder=tmp_path / "run", resume=True)
    assert all(value.equal(resumed[name]) for name, value in whole.items())
    assert not whole["fc.weight"].equal(start().student.fc.weight)
