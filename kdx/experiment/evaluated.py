"""``evaluate_run``: the metrics of a run's student on its test rows, or on others."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from kdx.datasets.contract import check_dataset
from kdx.datasets.view import View
from kdx.errors import RecipeError
from kdx.experiment.components import locating
from kdx.experiment.data import rows_at_once
from kdx.experiment.recipe_files import load_recipe, plugins_beside
from kdx.experiment.run_files import RECIPE, read_recipe
from kdx.experiment.trained import TrainedModel, load
from kdx.ref import Ref, RefLike
from kdx.registry import Plugins
from kdx.training.evaluation import Measured, evaluate
from kdx.trust import Rule, Trusted, trusting

__all__ = ["evaluate_run"]


def evaluate_run(
    run: str | Path,
    data: RefLike | None = None,
    *,
    stage: str = "distilled",
    batch_size: int | None = None,
    trust: Trusted = (),
    plugins: Plugins | None = None,
) -> Measured:
    """Evaluates the student of a run on the test split of a data set, by the metrics of its task.

    Args:
        run: see :func:`kdx.load`.
        data: a data set by name with its options, as a recipe writes it; None: that of the run, which is read from its
            recipe. Its options alone, without ``name``, replace those of the run's data set.
        stage: see :func:`kdx.load`.
        batch_size: rows at once; None: 500, fewer where their outputs would be more than 2^26 numbers.
        trust: see :func:`kdx.load`.
        plugins: see :func:`kdx.load`.

    Returns:
        Metric -> value.

    Raises:
        RecipeError: the data set does not suit the student: other classes, another shape or preprocessing.
        FileError: see :func:`kdx.load`.
    """
    student = load(run, stage=stage, trust=trust, plugins=plugins)
    folder = Path(run) if Path(run).is_dir() else Path(run).parent
    known = (plugins or plugins_beside(folder / RECIPE if (folder / RECIPE).exists() else {})).beside(student.files)
    rule = Rule.of(trust, known)
    ref = _data(data, folder, rule, trust)
    with trusting(rule), locating(f"data ({ref.name})"):
        known_options = inspect.signature(rule.plugins.load("dataset", ref.name)).parameters
        trained = {"preprocessing": student.preprocessing, "classes": student.classes}
        given = {name: value for name, value in trained.items() if value is not None and name in known_options}
        rows = rule.plugins.make("dataset", ref, split="test", **given)
        check_dataset(rows)
        _check_same(student, rows)
    loader = DataLoader(View(rows), batch_size or rows_at_once(rows), collate_fn=student.task.collate)
    return evaluate(student, loader, metrics=student.task.metrics, output=lambda outputs: outputs)


def _data(data: RefLike | None, folder: Path, rule: Rule, trust: Trusted) -> Ref:
    if data is not None and not (isinstance(data, Mapping) and "name" not in data):
        return Ref.of(data, "data")
    if not (folder / RECIPE).is_file():
        raise RecipeError(
            f"data: {folder} is no folder of a run, so it is not known which; give a data set with its name"
        )
    read_recipe(folder)
    recipe = load_recipe(folder / RECIPE, plugins=rule.plugins, trust=trust)
    if recipe.data.novel_classes:
        raise RecipeError(
            "data: the run tests on classes that it held out of training (novel_classes), whose rows are in both "
            "splits; its result.json has the metrics"
        )
    return recipe.data.dataset.with_options(**dict(data or {}))


def _check_same(student: TrainedModel, rows: Any) -> None:
    """Checks that a data set gives the student what it was trained on."""
    shape, classes = student.description.shape, getattr(rows, "classes", None)
    if list(rows.input_shape) != list(shape["input_shape"]):
        raise ValueError(
            f"its inputs have the shape {list(rows.input_shape)}, and the student takes {list(shape['input_shape'])}"
        )
    if student.classes is not None and classes is not None and tuple(map(str, classes)) != student.classes:
        raise ValueError(
            f"its classes are {_shown(classes)}, and the student's are {_shown(student.classes)}; they must be the "
            "same, in the same order"
        )
    preprocessing = getattr(rows, "preprocessing", None)
    if student.preprocessing is not None and preprocessing is not None and preprocessing != student.preprocessing:
        raise ValueError(
            "it prepares its inputs in another way than the student was trained with (another normalisation or size), "
            "so the numbers would mean nothing; give it the options of the run's data set"
        )


def _shown(classes: Any) -> str:
    names = [str(each) for each in classes]
    return ", ".join(names[:5]) + (f" ... ({len(names)})" if len(names) > 5 else "")
