"""``load``: a student taken home from a run, with what it takes to use it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdx.capture import call, logits_of
from kdx.datasets.preprocessing import Preprocessing, preprocessing_of
from kdx.errors import FileError, nearest
from kdx.experiment.components import locating, new_model
from kdx.experiment.description import Description
from kdx.experiment.run_files import CODE, RESULT, SUMMARY, again, check_files, read_result, read_stopped, weights_of
from kdx.own_files import OwnFiles
from kdx.registry import Plugins, default_plugins
from kdx.responses import Form, Responses
from kdx.stage_name import split_name
from kdx.tasks.base import Task
from kdx.tasks.heads import Heads
from kdx.training.weights import load_weights
from kdx.trust import Rule, Trusted, trusting

__all__ = ["Prediction", "TrainedModel", "load", "weights_file"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The outputs for one input, and what they mean.

    Args:
        name: of the input: a file, with a line or a row.
        outputs: as the model gives them, without the axis of rows; of several heads a mapping.
        values: probabilities of the classes or labels, ``[C]`` (of elements ``[C, ...]``, the classes first); where the
            task has none, the outputs themselves.
        label: name, or number, of the most probable class; of labels those above one half; None of quantities, vectors
            and elements.
    """

    name: str
    outputs: Any
    values: Any
    label: Any


class TrainedModel(nn.Module):
    """A trained model in evaluation mode, with its classes and the preprocessing of its inputs.

    Args:
        model: the plain model, also as the attribute ``model``.
        description: of it.
        task: what its outputs are for.
        files: the Python files of its own that it is built from.

    Attributes:
        classes: names of the classes or labels, in the order of the outputs; None if the data set has none.
        preprocessing: reads files as inputs, a :class:`kdx.datasets.Preprocessing`; None if the data set has none.
    """

    def __init__(self, model: nn.Module, description: Description, task: Task, files: OwnFiles | None = None) -> None:
        super().__init__()
        self.model = model
        self.files = files or OwnFiles(Path(), copies={})
        self.description = description
        self.task = task
        self.classes = description.classes
        kept = description.preprocessing
        self.preprocessing: Preprocessing | None = None if kept is None else preprocessing_of(kept)
        self.eval()

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The outputs that the task takes, such as logits ``[N, C]``; of several heads a mapping.

        Args:
            inputs: preprocessed, ``[N, ...]``, as the model takes them, or a mapping of those that it takes by name.
            named: those that it takes by name.
        """
        returned = call(self.model, named or (inputs[0] if len(inputs) == 1 else inputs))
        return self.task.read(returned) if isinstance(self.task, Heads) else logits_of(returned)

    def read(self, file: str | Path) -> Iterator[tuple[str, Tensor]]:
        """The name and the input of everything in a file.

        Raises:
            ValueError: the data set that it was trained on does not say how files become inputs; or the file holds
                nothing of the kind.
        """
        if self.preprocessing is None:
            raise ValueError(
                f"the recipe {self.description.recipe!r} does not say how files become inputs, as its data set has no "
                f"preprocessing; call the model with a tensor of the shape [N, {self._shape()}]"
            )
        return self.preprocessing.read(Path(file))

    def predict(self, files: str | Path | Iterable[str | Path], *, batch_size: int = 64) -> Iterator[Prediction]:
        """Predictions for everything in files, one after the other.

        Args:
            files: one or several.
            batch_size: inputs at once.

        Raises:
            ValueError: see :meth:`read`.
        """
        device = next((parameter.device for parameter in self.parameters()), torch.device("cpu"))
        several = [files] if isinstance(files, str | Path) else files
        items = itertools.chain.from_iterable(map(self.read, several))
        while some := list(itertools.islice(items, batch_size)):
            names, inputs = zip(*some, strict=True)
            with torch.inference_mode():
                outputs = self(torch.stack(inputs).to(device))
            for row, name in enumerate(names):
                yield self._prediction(name, _row(outputs, row))

    def _prediction(self, name: str, outputs: Any) -> Prediction:
        if isinstance(outputs, Mapping):
            parts = {
                key: self._meaning(each, self.task.responses_at(f"logits[{key}]")) for key, each in outputs.items()
            }
            values, labels = ({key: each[k] for key, each in parts.items()} for k in (0, 1))
            return Prediction(name, outputs, values, labels)
        return Prediction(name, outputs, *self._meaning(outputs, self.task.responses, self.classes))

    def _meaning(self, output: Tensor, responses: Responses | None, classes: Any = None) -> tuple[Tensor, Any]:
        """Values and label of the output of one row."""
        form, output = responses.form if responses else None, output.float()
        if form is Form.CLASSES and responses is not None:
            first = output.movedim(responses.axis((1, *output.shape)) - 1, 0)
            values = first.softmax(0)
            return values, _named(int(values.argmax()), classes) if values.dim() == 1 else None
        if form is Form.BERNOULLI:
            values = output.sigmoid()
            if values.numel() == 1 and self.task.one_class is False and classes is not None and len(classes) == 2:
                return values, classes[int(values.item() > 0.5)]
            if values.dim() == 1:
                return values, [_named(k, classes) for k in (values > 0.5).nonzero().flatten().tolist()]
            return values, None
        return output, None

    def _shape(self) -> str:
        return ", ".join(map(str, self.description.shape["input_shape"]))


def load(
    run: str | Path,
    *,
    stage: str = "distilled",
    trust: Trusted = (),
    plugins: Plugins | None = None,
) -> TrainedModel:
    """Loads the student of a run, or the weights of one of its stages, ready to be used.

    It needs neither the data nor the recipe: the weights carry a description of the model. It is on the CPU, in
    evaluation mode.

    Args:
        run: the folder of a run, or a ``.safetensors`` file that one has written or :func:`kdx.export` made.
        stage: of a folder, the stage whose model it is: ``distilled``, ``alone``, ``teacher`` ..., or ``stage:model``
            for another model that its scheme trained, as ``distilled:teacher``.
        trust: modules that the description may name beside kdx and the plugins, and ``.py`` files, of which the run
            keeps copies; True: all. See :mod:`kdx.trust`.
        plugins: where the model comes from; None takes those installed.

    Raises:
        FileError: there is no such folder, file or stage.
        CheckpointError: the file does not say what model it is of, or its tensors do not fit the model.
        DamagedError: it is not as it was written.
        TrustError: the model is code that is not trusted.

    Example:
        >>> import kdx
        >>> student = kdx.load("runs/fashion-offline")  # doctest: +SKIP
        >>> student.classes[student(images).argmax(1)[0]]  # doctest: +SKIP
        'Pullover'
    """
    path = Path(run)
    weights = weights_file(run, stage)
    folder = weights.parent if path.is_file() and not (weights.parent.parent / CODE).is_dir() else weights.parent.parent
    description = Description.read(weights)
    files = OwnFiles(folder, copies=description.code)
    rule = Rule.of(trust, (plugins or default_plugins()).beside(files))
    shape = {name: tuple(value) if isinstance(value, list) else value for name, value in description.shape.items()}
    with trusting(rule):
        model = new_model(description.model, shape, description.facts, rule.plugins)
        with locating(f"task ({description.task.name})"):
            task: Task = rule.plugins.make("task", description.task)
    load_weights(model, weights, sealed=True)
    return TrainedModel(model, description, task, files)


def weights_file(run: str | Path, stage: str) -> Path:
    """The weights that :func:`load` reads; those of a finished stage are compared with their checksum."""
    if (folder := Path(run)).is_file():
        return folder
    if not folder.is_dir():
        raise FileError(f"there is no run {folder}, and no file of weights")
    stages = [path.parent.name for path in folder.glob(f"*/{RESULT}")]
    name, (stage, _) = stage, split_name(stage)
    if stage not in stages:
        if stopped := read_stopped(folder / stage):
            raise FileError(
                f"{folder} has no model of stage {stage!r}, which was stopped after step {stopped['step']}: "
                f"{stopped['reason']}"
            )
        unfinished = (
            "" if (folder / SUMMARY).exists() else "; the run is not finished, kdx run --resume goes on with it"
        )
        raise FileError(f"{folder} has no finished stage {stage!r}; {nearest(stage, stages)}{unfinished}")
    place = folder / stage
    result = read_result(place)
    check_files(place, result["files"], again(place))
    return weights_of(folder, result, name)


def _row(outputs: Any, row: int) -> Any:
    return {name: each[row] for name, each in outputs.items()} if isinstance(outputs, Mapping) else outputs[row]


def _named(number: int, classes: Any) -> Any:
    return number if classes is None else classes[number]
