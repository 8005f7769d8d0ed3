"""The scheme on-policy in a recipe with models and data of one's own, and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import kdx
from kdx.errors import RecipeError

FILE = '''
import torch
from torch import nn


class Rows(torch.utils.data.Dataset):
    """Sums of the two tokens before, modulo 7."""

    def __init__(self, split):
        generator = torch.Generator().manual_seed(0 if split == "train" else 1)
        rows = torch.randint(7, (24, 8), generator=generator)
        for place in range(2, 8):
            rows[:, place] = (rows[:, place - 1] + rows[:, place - 2]) % 7
        self.targets, self.num_classes, self.input_shape = rows, 7, (8,)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, row):
        return self.targets[row], self.targets[row]


class Net(nn.Module):
    def __init__(self, num_classes, input_shape, width=4):
        super().__init__()
        self.embed, self.body = nn.Embedding(num_classes, width), nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, num_classes)

    def forward(self, ids):
        return self.head(self.body(self.embed(ids))[0])
'''

RECIPE = """
data: {{dataset: {{name: "my_rows.py:Rows"}}, validation: 8}}
task: {{name: causal-lm, weight: {weight}}}
teacher: {{model: {{name: "my_rows.py:Net", width: 8}}, train: {{epochs: 1}}}}
student: {{model: {{name: "my_rows.py:Net"}}}}
scheme: {{name: on-policy, prompt: 2, max_new_tokens: 5, share: {share}, top_k: 4, beta: 0.0}}
controls: []
train: {{epochs: 2, batch_size: 8}}
"""


def written(folder: Path, *, weight: float, share: float) -> Path:
    (folder / "my_rows.py").write_text(FILE)
    (folder / "rows.yaml").write_text(RECIPE.format(weight=weight, share=share))
    return folder / "rows.yaml"


@pytest.mark.filterwarnings("ignore::kdx.experiment.experiment.WeakTeacherWarning")
def test_it_trains_a_student_of_ones_own(tmp_path: Path) -> None:
    recipe = written(tmp_path, weight=0.3, share=0.5)
    kdx.run(str(recipe), folder=tmp_path / "run", report=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "distilled" / "metrics.jsonl").read_text().splitlines()]
    assert any("term/kd" in line for line in lines)
    assert any("term/task" in line for line in lines)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())


def test_a_task_without_a_batch_to_learn_it_from_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    recipe = written(tmp_path, weight=0.3, share=1.0)
    with pytest.raises(RecipeError, match=r"with share=1 no batch holds completions of the data"):
        kdx.run(str(recipe), folder=tmp_path / "run", report=False)
    assert not (tmp_path / "run" / "teacher" / "student.safetensors").exists()
