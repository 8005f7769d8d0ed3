"""A teacher whose inputs are others than the student's, in a recipe: another resolution, another tokenisation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from kdx.batch import Batch
from kdx.datasets import Digits, Resized
from kdx.errors import RecipeError
from kdx.experiment.data import ExperimentData
from kdx.experiment.experiment import Experiment
from kdx.training import evaluate
from tests.experiment.tiny import TINY, recipe

pytestmark = pytest.mark.filterwarnings("ignore::kdx.experiment.experiment.WeakTeacherWarning")
DATA = {**TINY["data"], "labelled": 300, "views": {"small": {"size": [4, 4]}}}
TEACHER = {**TINY["teacher"], "view": "small"}


def test_images_are_resized_and_everything_else_stays() -> None:
    digits = Digits("test")
    small = Resized(digits, (4, 4))
    assert small.input_shape == (1, 4, 4)
    assert small.num_classes == 10
    assert small.targets.equal(digits.targets)
    image, target = small[3]
    assert target == digits[3][1]
    torch.testing.assert_close(image.mean(), digits[3][0].mean(), rtol=0.2, atol=0.05)
    small.input_shape = (64,)
    with pytest.raises(ValueError, match=r"expected images \[C, H, W\] to resize, got inputs \[64\]"):
        Resized(small, (4, 4))


def test_the_teacher_is_trained_and_evaluated_on_its_view_and_sees_it_while_teaching(tmp_path: Path) -> None:
    experiment = Experiment(recipe(data=DATA, teacher=TEACHER), tmp_path / "run", report=False)
    summary = experiment.run()
    teacher = experiment.assembly.model("teacher")
    assert next(teacher.parameters()).shape[1] == 16  # the pixels of its view
    rows = DataLoader(Resized(Digits("test"), (4, 4)), 500)
    assert summary["stages"]["teacher"]["test"]["accuracy"] == pytest.approx(evaluate(teacher, rows)["accuracy"])
    stage = experiment.assembly.stages["distilled"]
    scheme = experiment.assembly.scheme(stage)
    batch: Batch = next(iter(experiment.assembly.training(stage, scheme)))
    assert batch.inputs.shape[1:] == (1, 8, 8)
    train = Digits("train")
    small = torch.stack([Resized(train, (4, 4))[int(row)][0] for row in batch.index])
    assert batch.views["small"].equal(small)
    assert scheme.teacher(batch).logits.equal(teacher.eval()(small).detach())
    assert next(scheme.student.parameters()).shape[1] == 64


def test_an_assistant_between_them_takes_the_students_inputs(tmp_path: Path) -> None:
    chain = {"name": "takd", "models": [{"name": "mlp", "hidden": [12, 8]}]}
    experiment = Experiment(recipe(data=DATA, teacher=TEACHER, assistant=chain), tmp_path / "run", report=False)
    experiment.run()
    scheme = experiment.assembly.scheme(experiment.assembly.stages["distilled"])
    assert next(scheme.teacher.model.parameters()).shape[1] == 64
    assert scheme.teacher.view is None


def test_a_view_may_be_another_data_set_of_the_same_samples() -> None:
    words = {"dataset": {"name": "wordnet-nouns", "length": 6, "vocabulary": 50}, "validation": 100}
    other = {"pieces": {"dataset": {"name": "wordnet-nouns", "length": 12, "vocabulary": 300}}}
    given = recipe(
        data={**words, "views": other}, student={"model": "embedding-bag"}, teacher={"model": "embedding-bag"}
    )
    data = ExperimentData(given)
    seen = data.seen("pieces")
    assert data.seen(None) is data
    assert (data.shape["input_shape"], seen.shape["input_shape"]) == ((6,), (12,))
    assert (data.facts["vocabulary"], seen.facts["vocabulary"]) == (50, 300)
    batch = data.few[5]
    assert batch.views["pieces"].equal(seen.few[5].inputs)
    assert seen.test[7].inputs.shape == (12,)
    assert int(seen.validation[3].targets) == int(data.validation[3].targets)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"data": {**DATA, "views": {"small": {"dataset": {"name": "fashion-mnist"}}}}},
            r"data\.views\.small: fashion-mnist has 5000 rows of split 'train', and data\.dataset 1297",
        ),
        (
            {"scheme": {"name": "online", "teacher_view": "small"}, "teacher": {"model": TINY["teacher"]["model"]}},
            r"scheme\.teacher_view: the view 'small' has inputs of its own",
        ),
        (
            {"student": {"model": {"name": "derived", "how": "width", "params": 0.5}}},
            r"student\.model: a student derived from its teacher takes the teacher's inputs",
        ),
        ({"data": {**DATA, "views": {"small": {"size": [4, 4], "augment": {}}}}}, "augment, dataset or size"),
    ],
)
def test_views_that_cannot_be_are_refused_before_training(change, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        Experiment(recipe(**{"data": DATA, "teacher": TEACHER, **change}), tmp_path / "run").run()
    assert not (tmp_path / "run").exists()
