"""What language models write for a report: drawn alike for all, decoded by the data set, shown beside the numbers."""

from __future__ import annotations

import html
from pathlib import Path

import pytest
import torch
from torch import nn

import kdx
from kdx.datasets import View
from kdx.experiment.continuations import continuations

ALPHABET = "abcdefgh"


class Letters(torch.utils.data.Dataset):
    """Rows of the alphabet that begin at different letters."""

    def __init__(self, split: str = "train", length: int = 12) -> None:
        places = torch.arange(32 if split == "train" else 8)[:, None]
        self.targets = (places + torch.arange(length)) % len(ALPHABET)
        self.num_classes, self.input_shape = len(ALPHABET), (length,)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int):
        return self.targets[row], self.targets[row]

    def decode(self, ids) -> str:
        return "".join(ALPHABET[token] for token in ids)


class Next(nn.Module):
    """Knows the alphabet by heart."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(50.0))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.scale * nn.functional.one_hot((input_ids + 1) % len(ALPHABET), len(ALPHABET)).float()


class Named(Letters):
    def __getitem__(self, row: int):
        return {"input_ids": self.targets[row]}, self.targets[row]


@pytest.mark.parametrize("data", [Letters, Named])
def test_a_model_goes_on_with_the_beginnings_of_rows(data) -> None:
    model = Next().train()
    before = torch.get_rng_state()
    found = continuations(model, View(data("test"), range(8)))
    assert [each["prompt"] for each in found] == ["abcdef", "efghab"]
    assert [each["text"] for each in found] == ["ghabcd", "cdefgh"]
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_data_that_cannot_say_what_tokens_stand_for_give_no_text() -> None:
    class Mute(Letters):
        decode = None

    assert continuations(Next(), View(Mute("test"), range(8))) == []
    assert continuations(Next(), View(Letters("test"), [])) == []


@pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning")
def test_a_report_shows_what_teacher_and_students_write(tmp_path: Path) -> None:
    plugins = kdx.Plugins(entries=())

    class Package:
        @kdx.hookimpl
        def kdx_datasets(self):
            return [kdx.Spec("letters", f"{__name__}:Letters", "the alphabet")]

    plugins.register(Package(), "letters")
    model = {"name": "token-decoder", "dim": 8, "depth": 1, "heads": 2}
    recipe = {
        "data": {"dataset": {"name": "letters"}, "validation": 8},
        "task": {"name": "causal-lm", "weight": 0.5},
        "teacher": {"model": {**model, "dim": 16}, "train": {"epochs": 1}},
        "student": {"model": model},
        "knowledge": {"kd": {"name": "soft-targets", "temperature": 1.0}},
        "train": {"epochs": 1},
        "device": "cpu",
    }
    summary = kdx.run(recipe, folder=tmp_path / "run", plugins=plugins)
    page = html.unescape((tmp_path / "run" / "report.html").read_text())
    for stage in ("teacher", "alone", "distilled"):
        first, second = summary["stages"][stage]["continuations"]
        assert first["prompt"] == "abcdef"
        assert len(first["text"]) == 6
        assert first["text"] in page
        assert second["text"] in page
