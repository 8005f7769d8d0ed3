"""The rows of an experiment: for training, for selecting an epoch, and for the test at the end."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, RandomSampler

from kdx.batch import IGNORE, Batch
from kdx.datasets.augment import ShiftFlip
from kdx.datasets.contract import check_dataset
from kdx.datasets.image_transforms import make_transforms
from kdx.datasets.resized import Resized
from kdx.datasets.sample_stream import SampleStream
from kdx.datasets.splits import few_labels, train_validation_split
from kdx.datasets.targets import Targets, put_rows, same_targets, take_rows
from kdx.datasets.view import Transform, View
from kdx.errors import RecipeError
from kdx.experiment.components import locating, task_of
from kdx.experiment.recipe import Augment, Data, Recipe, ViewSection
from kdx.registry import Plugins, default_plugins
from kdx.responses import Form
from kdx.schemes.base import Scheme
from kdx.tasks.base import Task

__all__ = ["ExperimentData", "rows_at_once"]

_ROWS, _OUTPUTS = 500, 2**26
"""That are evaluated at once, at most."""


class ExperimentData:
    """The sets of a recipe.

    Args:
        recipe: its section ``data`` names the data set and says how it is split.
        plugins: where the data set comes from; None takes the plugins installed.

    Attributes:
        shape: ``num_classes`` (the width of their output, as the task says) and ``input_shape``, for the models.
        facts: further attributes of the data set for the models that take them, as ``vocabulary``.
        all: training rows with every label (the teacher's).
        few: the same rows, hidden labels ``-100``, or NaN in float targets (the distilled student's).
        labelled: only the rows that keep their label (the student alone).
        validation: rows held out of the training split; they select the epoch.
        test: rows of the test split. With ``novel_classes`` every row of those classes, from both splits: no training
            or validation row has one of them.

    Raises:
        RecipeError: the data set refuses its options or is none (:func:`kdx.datasets.check_dataset`);
            ``novel_classes`` names a class that there is not, or the task has no classes of rows; ``augment`` would
            move images without their targets.
    """

    def __init__(self, recipe: Recipe, plugins: Plugins | None = None) -> None:
        data, seed, plugins = recipe.data, recipe.seed, plugins or default_plugins()
        made: dict[str, Any] = {}
        for split in ("train", "test"):
            with locating(f"data.dataset ({data.dataset.name})"):
                made[split] = plugins.make("dataset", data.dataset, split=split)
                check_dataset(made[split])
        whole = made["train"]
        sights = {name: _others(name, each, made, plugins) for name, each in data.views.items() if each.own_inputs}
        self.task = task = task_of(recipe, plugins)
        self.whole = whole
        with locating(f"task ({recipe.task.name})"):
            width = task.outputs(whole.num_classes)
        self.shape = {"num_classes": width, "input_shape": whole.input_shape}
        self.facts = _facts(whole)
        self.workers = data.workers
        self.stream, self.seed = data.stream, seed
        _check_augment(recipe, task, whole)
        novel = _novel(data, whole.num_classes)
        if novel and task.classes(whole.targets) is None:
            raise RecipeError(
                f"data.novel_classes: rows have no classes under the task {recipe.task.name!r}; remove it"
            )
        known = (~_is_in(whole.targets, novel)).nonzero().squeeze(1) if novel else torch.arange(len(whole))
        with locating(f"data.dataset ({data.dataset.name}): targets"):
            strata = _strata(task, take_rows(whole.targets, known))
        train, held_out = train_validation_split(strata.clamp(min=0), data.validation, seed)
        rows, targets = known[train], take_rows(whole.targets, known[train])
        labelled = (strata[train] != IGNORE).nonzero().squeeze(1)
        shown = targets
        if data.labelled is not None:
            with locating("data.labelled"):
                kept = few_labels(strata[train], data.labelled, seed, balanced=data.balanced)
                labelled = (kept != IGNORE).nonzero().squeeze(1)
            shown = task.hidden(targets)
            put_rows(shown, labelled, targets)
        augment = _augmenting(data.augment, seed, whole)
        # views that are augmented alike are drawn apart
        also: dict[str, Transform | None] = {
            name: _Rows(sights[name]["train"]) if name in sights else _augmenting(each.augment, seed + k, whole)
            for k, (name, each) in enumerate(data.views.items(), start=1)
        }
        self.all = View(whole, rows, targets, transform=augment, also=also)
        self.few = View(whole, rows, shown, transform=augment, also=also)
        self.labelled = View(whole, rows[labelled], take_rows(targets, labelled), transform=augment, also=also)
        self.validation = View(whole, known[held_out])
        self.test = self._test(made, novel)
        self._seen = {name: self._as_seen(own, novel) for name, own in sights.items()}
        for name, own in sights.items():
            if _own_targets(own["train"]):
                self._seen[name]._take_own_targets(own["train"], recipe, plugins, labelled)

    def seen(self, view: str | None) -> ExperimentData:
        """The same rows as the inputs of a view; these themselves where the view differs in the training rows alone."""
        return self._seen.get(view or "", self)

    def _as_seen(self, own: Mapping[str, Any], novel: list[int]) -> ExperimentData:
        """The same rows with the inputs of other data sets of the same samples, by split."""
        found, train = copy.copy(self), own["train"]
        found.shape = {**self.shape, "input_shape": train.input_shape}
        found.facts = _facts(train)
        for name in ("all", "few", "labelled", "validation"):
            rows: View = getattr(self, name)
            setattr(found, name, View(train, rows.indices, rows.targets, transform=rows.transform))
        found.test = self._test(own, novel)
        return found

    def _take_own_targets(self, train: Any, recipe: Recipe, plugins: Plugins, labelled: Tensor) -> None:
        """Makes the targets of every row those of a view's data set, as token ids of another tokenizer."""
        self.task = task = task_of(recipe, plugins)
        task.dataset(train)
        self.shape = {**self.shape, "num_classes": task.outputs(train.num_classes)}
        for name in ("all", "few", "labelled", "validation"):
            rows: View = getattr(self, name)
            targets = take_rows(train.targets, rows.indices)
            if name == "few" and recipe.data.labelled is not None:
                hidden = task.hidden(targets)
                put_rows(hidden, labelled, take_rows(targets, labelled))
                targets = hidden
            setattr(self, name, View(train, rows.indices, targets, transform=rows.transform))

    def _test(self, made: Mapping[str, Any], novel: list[int]) -> Dataset[Batch]:
        if not novel:
            return View(made["test"])
        return ConcatDataset(
            [View(made[split], _is_in(made[split].targets, novel).nonzero().squeeze(1)) for split in made]
        )

    def training(self, dataset: View, batch_size: int, scheme: Scheme | None = None) -> DataLoader[Batch]:
        """A loader whose epoch has as many rows whatever the set, so that all arms take the same number of steps.

        A scheme that wants its batches put together in its own way is asked how (:meth:`kdx.Scheme.batches`).
        """
        if self.stream is not None:
            samples = SampleStream(dataset, phases=self.stream.phases, seed=self.seed)
            return DataLoader(samples, batch_size, num_workers=self.workers)
        options: dict[str, Any] = {"num_workers": self.workers, "collate_fn": self.task.collate}
        if scheme is not None and dataset.targets is not None and type(scheme).batches is not Scheme.batches:
            classes = self.task.classes(dataset.targets)
            if classes is None:
                raise RecipeError(
                    f"scheme: {type(scheme).__name__} puts rows of one class into a batch, and the task "
                    f"{type(self.task).__name__} has no class for a row; take another scheme"
                )
            batches = scheme.batches(classes, batch_size, len(self.all))
            if batches is not None:
                return DataLoader(dataset, batch_sampler=batches, **options)
        sampler = RandomSampler(dataset, num_samples=len(self.all))
        return DataLoader(dataset, batch_size, sampler=sampler, **options)

    def plain(self, rows: str, batch_size: int) -> DataLoader[Batch]:
        """A loader that goes through rows in order, without augmentation and further views; nothing is drawn.

        Args:
            rows: ``all``, ``few``, ``labelled`` or ``validation``.
            batch_size: rows in a batch; the last one may be smaller.
        """
        view: View = getattr(self, rows)
        unchanged = View(view.dataset, view.indices, view.targets)
        # with a generator of its own, else torch's loader draws a number from the global one
        return DataLoader(unchanged, batch_size, collate_fn=self.task.collate, generator=torch.Generator())

    def evaluation(self, dataset: Dataset[Batch]) -> DataLoader[Batch]:
        """A loader that goes through a set once, in order, as many rows at once as :func:`rows_at_once` says."""
        return DataLoader(dataset, rows_at_once(self.whole), collate_fn=self.task.collate)


def rows_at_once(data: Any) -> int:
    """The number of rows that are evaluated at once: 500, fewer where their outputs would be more than 2^26 numbers.

    A row has an output for every class of each of its elements, as of pixels or tokens.

    Args:
        data: a data set of :func:`kdx.datasets.check_dataset`.
    """
    targets, classes = data.targets, data.num_classes
    if isinstance(targets, Mapping):
        outputs = sum(_outputs_of_row(each, classes[name]) for name, each in targets.items())
    else:
        outputs = _outputs_of_row(targets, classes)
    return max(1, min(_ROWS, _OUTPUTS // max(outputs, 1)))


def _outputs_of_row(targets: Tensor, classes: int) -> int:
    elements = targets[0].numel()
    return elements if targets.is_floating_point() else elements * classes


class _Rows:
    """The inputs of another data set of the same samples, as a view's transform."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __call__(self, inputs: Tensor, index: Tensor, epoch: int) -> Tensor:
        return torch.stack([self.dataset[row][0] for row in index.tolist()])


def _others(name: str, view: ViewSection, made: Mapping[str, Any], plugins: Plugins) -> dict[str, Any]:
    """The data sets of a view whose inputs are its own, by split: the same samples in the same order."""
    found: dict[str, Any] = {}
    for split, dataset in made.items():
        with locating(f"data.views.{name}"):
            if view.size is not None:
                found[split] = Resized(dataset, view.size)
                continue
            assert view.dataset is not None
            found[split] = other = plugins.make("dataset", view.dataset, split=split)
            check_dataset(other)
            if len(other) != len(dataset) or not (_own_targets(other) or same_targets(other.targets, dataset.targets)):
                raise ValueError(
                    f"{view.dataset.name} has {len(other)} rows of split {split!r}, and data.dataset {len(dataset)}, "
                    "or other targets: a view shows the same samples in the same order; give both the same options"
                )
    return found


def _own_targets(dataset: Any) -> bool:
    """Whether the targets of a view's data set are its own, as the token ids of another tokenizer."""
    return bool(getattr(dataset, "own_targets", False))


def _facts(dataset: Any) -> dict[str, Any]:
    """The further attributes of a data set for the models that take them."""
    return {name: getattr(dataset, name) for name in getattr(dataset, "model_options", ())}


def _strata(task: Task, targets: Targets) -> Tensor:
    """The class by which rows are balanced, ``-100`` of those without a label; 0 where the task has no classes."""
    if (classes := task.classes(targets)) is not None:
        return classes
    known = task.labelled(targets)
    return torch.where(known.reshape(len(known), -1).any(1), 0, IGNORE)


def _check_augment(recipe: Recipe, task: Task, data: Any) -> None:
    """Checks that what changes images leaves the targets right."""
    if recipe.data.augment is None and all(view.augment is None for view in recipe.data.views.values()):
        return
    if len(data.input_shape) != 3:
        raise RecipeError(
            f"data.augment: it changes images [C, H, W], and the inputs have the shape "
            f"{list(data.input_shape)}; remove it"
        )
    if any(each.responses.void or each.responses.form is Form.VALUES for each in task.parts):
        raise RecipeError(
            f"data.augment: it changes inputs and not the targets of the task {recipe.task.name!r}, which "
            "say where things are or how much there is; remove it"
        )


def _augmenting(section: Augment | None, seed: int, data: Any) -> Transform | None:
    if section is None:
        return None
    if section.transforms is None:
        return ShiftFlip(section.shift, section.flip, seed=seed)
    with locating("data.augment"):
        return make_transforms(section.transforms, seed, data)


def _novel(data: Data, classes: int) -> list[int]:
    if wrong := [label for label in data.novel_classes if not 0 <= label < classes]:
        raise RecipeError(f"data.novel_classes: the data set has classes 0 .. {classes - 1}, got {wrong[0]}")
    return sorted(set(data.novel_classes))


def _is_in(targets: Tensor, classes: list[int]) -> Tensor:
    return torch.isin(targets, torch.tensor(classes, dtype=targets.dtype))
