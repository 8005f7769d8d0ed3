"""The rows of an experiment: for training, for selecting an epoch, and for the test at the end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, RandomSampler

from kdx.batch import IGNORE, Batch
from kdx.datasets.augment import ShiftFlip
from kdx.datasets.contract import check_dataset
from kdx.datasets.sample_stream import SampleStream
from kdx.datasets.splits import few_labels, train_validation_split
from kdx.datasets.view import View
from kdx.errors import RecipeError
from kdx.experiment.components import locating, task_of
from kdx.experiment.recipe import Augment, Data, Recipe
from kdx.registry import Plugins, default_plugins
from kdx.schemes.base import Scheme

__all__ = ["ExperimentData"]


class ExperimentData:
    """The sets of a recipe.

    Args:
        recipe: its section ``data`` names the data set and says how it is split.
        plugins: where the data set comes from; None takes the plugins installed.

    Attributes:
        shape: ``num_classes`` (the width of their output, as the task says) and ``input_shape``, for the models.
        all: training rows with every label (the teacher's).
        few: the same rows, hidden labels ``-100`` (the distilled student's).
        labelled: only the rows that keep their label (the student alone).
        validation: rows held out of the training split; they select the epoch.
        test: rows of the test split. With ``novel_classes`` every row of those classes, from both splits: no training
            or validation row has one of them.

    Raises:
        RecipeError: the data set refuses its options or is none (:func:`kdx.datasets.check_dataset`);
            ``novel_classes`` names a class that there is not.
    """

    def __init__(self, recipe: Recipe, plugins: Plugins | None = None) -> None:
        data, seed, plugins = recipe.data, recipe.seed, plugins or default_plugins()
        made: dict[str, Any] = {}
        for split in ("train", "test"):
            with locating(f"data.dataset ({data.dataset.name})"):
                made[split] = plugins.make("dataset", data.dataset, split=split)
                check_dataset(made[split])
        whole = made["train"]
        width = task_of(recipe, plugins).outputs(whole.num_classes)
        self.shape = {"num_classes": width, "input_shape": whole.input_shape}
        self.workers = data.workers
        self.stream, self.seed = data.stream, seed
        novel = _novel(data, whole.num_classes)
        known = (~_is_in(whole.targets, novel)).nonzero().squeeze(1)
        train, held_out = train_validation_split(whole.targets[known], data.validation, seed)
        rows, targets = known[train], whole.targets[known[train]]
        shown = targets if data.labelled is None else few_labels(targets, data.labelled, seed)
        labelled = (shown != IGNORE).nonzero().squeeze(1)
        augment = _augmenting(data.augment, seed)
        # views that are augmented alike are drawn apart
        also = {name: _augmenting(each.augment, seed + k) for k, (name, each) in enumerate(data.views.items(), start=1)}
        self.all = View(whole, rows, targets, transform=augment, also=also)
        self.few = View(whole, rows, shown, transform=augment, also=also)
        self.labelled = View(whole, rows[labelled], targets[labelled], transform=augment, also=also)
        self.validation = View(whole, known[held_out])
        self.test: Dataset[Batch] = View(made["test"])
        if novel:
            self.test = ConcatDataset(
                [View(made[split], _is_in(made[split].targets, novel).nonzero().squeeze(1)) for split in made]
            )

    def training(self, dataset: View, batch_size: int, scheme: Scheme | None = None) -> DataLoader[Batch]:
        """A loader whose epoch has as many rows whatever the set, so that all arms take the same number of steps.

        A scheme that wants its batches put together in its own way is asked how (:meth:`kdx.Scheme.batches`).
        """
        if self.stream is not None:
            samples = SampleStream(dataset, phases=self.stream.phases, seed=self.seed)
            return DataLoader(samples, batch_size, num_workers=self.workers)
        if scheme is not None and dataset.targets is not None:
            batches = scheme.batches(dataset.targets, batch_size, len(self.all))
            if batches is not None:
                return DataLoader(dataset, batch_sampler=batches, num_workers=self.workers)
        sampler = RandomSampler(dataset, num_samples=len(self.all))
        return DataLoader(dataset, batch_size, sampler=sampler, num_workers=self.workers)

    def evaluation(self, dataset: Dataset[Batch]) -> DataLoader[Batch]:
        """A loader that goes through a set once, in order."""
        return DataLoader(dataset, batch_size=500)


def _augmenting(section: Augment | None, seed: int) -> ShiftFlip | None:
    return None if section is None else ShiftFlip(section.shift, section.flip, seed=seed)


def _novel(data: Data, classes: int) -> list[int]:
    if wrong := [label for label in data.novel_classes if not 0 <= label < classes]:
        raise RecipeError(f"data.novel_classes: the data set has classes 0 .. {classes - 1}, got {wrong[0]}")
    return sorted(set(data.novel_classes))


def _is_in(targets: Tensor, classes: list[int]) -> Tensor:
    return torch.isin(targets, torch.tensor(classes, dtype=targets.dtype))
