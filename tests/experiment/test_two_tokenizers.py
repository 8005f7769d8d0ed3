"""A recipe whose teacher has another tokenizer: it is trained and judged on its own tokens, and teaches by chunks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import kdx
from kdx.datasets import Tokens, TwoTokenisations, TwoVocabularies
from kdx.errors import RecipeError
from kdx.experiment.data import ExperimentData
from kdx.experiment.experiment import Experiment
from kdx.experiment.recipe_files import check_recipe
from kdx.hookspecs import hookimpl
from kdx.registry import Plugins
from kdx.spec import Spec
from kdx.training import evaluate

WORDS = [b"the ", b"cat ", b"dog ", b"sees ", b"a "]
PIECES = [*(bytes([byte]) for byte in sorted(set(b"".join(WORDS)))), b"the "]


class Sentences(TwoTokenisations):
    """Sentences of five words: tokens of the student are words, of the teacher letters and one word."""

    def __init__(self, split: str, side: str = "student", lengths: tuple[int, int] = (6, 26)) -> None:
        draws = torch.Generator().manual_seed(len(split))
        texts = []
        for _ in range(120):
            words = torch.randint(5, (5,), generator=draws).tolist()
            letters = []
            for word in (WORDS[k] for k in words):
                letters += [PIECES.index(each) for each in ([word] if word in PIECES else map(bytes, zip(word)))]
            texts.append((Tokens([5, *words], prompt=1), Tokens([len(PIECES), *letters], prompt=1)))
        vocabularies = TwoVocabularies([*WORDS, b""], [*PIECES, b""])
        super().__init__(texts, vocabularies, lengths=lengths, split=False, side=side)


class Plugin:
    @hookimpl
    def kdx_datasets(self):
        return [Spec("sentences", f"{__name__}:Sentences", "for a test")]


def recipe_of(**changes):
    made = Plugins(entries=(), blocked=(), trace=False)
    made.register(Plugin(), "own")
    model = {"name": "token-decoder", "dim": 8, "depth": 1, "heads": 2}
    given = {
        "threads": 1,
        "controls": [],
        "data": {
            "dataset": "sentences",
            "views": {"teacher": {"dataset": {"name": "sentences", "side": "teacher"}}},
            "validation": 20,
        },
        "task": {"name": "causal-lm", "weight": 0.5},
        "teacher": {"model": model, "view": "teacher", "reuse": False, "train": {"epochs": 1}},
        "student": {"model": model},
        "knowledge": {"alm": {"name": "alm"}, "uld": {"name": "uld", "weight": 0.5}},
        "train": {"epochs": 1},
    }
    return check_recipe({**given, **changes}, plugins=made), made


@pytest.mark.filterwarnings("ignore::kdx.experiment.experiment.WeakTeacherWarning")
def test_the_teacher_is_trained_and_judged_on_its_own_tokens_and_teaches_the_students(tmp_path: Path) -> None:
    recipe, plugins = recipe_of()
    experiment = Experiment(recipe, tmp_path / "run", report=False, plugins=plugins)
    summary = experiment.run()
    teacher = experiment.assembly.model("teacher")
    assert teacher.fc.weight.shape[0] == len(PIECES) + 1
    own = Sentences("test", side="teacher")
    task = kdx.make("task", "causal-lm", token_bytes=own.token_bytes)
    expected = evaluate(teacher, DataLoader(own, 500), metrics=task.metrics)
    assert summary["stages"]["teacher"]["test"] == pytest.approx(expected)
    metrics = (tmp_path / "run" / "distilled" / "metrics.jsonl").read_text()
    assert "term/alm" in metrics
    assert "term/uld" in metrics
    assert "bits_per_byte" in summary["stages"]["distilled"]["test"]


def test_rows_of_both_sides_are_held_out_and_hidden_together() -> None:
    recipe, plugins = recipe_of()
    data = ExperimentData(recipe, plugins)
    seen = data.seen("teacher")
    assert (data.shape["num_classes"], seen.shape["num_classes"]) == (6, len(PIECES) + 1)
    for name in ("all", "few", "labelled", "validation"):
        ours, theirs = getattr(data, name), getattr(seen, name)
        assert ours.indices.equal(theirs.indices)
        assert theirs[3].targets.equal(ours[3].views["alignment"]["teacher_labels"])


@pytest.mark.filterwarnings("ignore::kdx.experiment.experiment.WeakTeacherWarning")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"knowledge": {"kd": {"name": "soft-targets"}}}, r"knowledge 'kd'.*take uld or alm"),
        (
            {"data": {"dataset": {"name": "sentences", "lengths": [6, 20]}, "validation": 20}},
            "data.views has no 'teacher'",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_before_training(change, message: str, tmp_path: Path) -> None:
    def run() -> None:
        recipe, plugins = recipe_of(**change)
        Experiment(recipe, tmp_path / "run", plugins=plugins).run()

    with pytest.raises((RecipeError, ValueError), match=message):
        run()
    assert not (tmp_path / "run" / "distilled").exists()
