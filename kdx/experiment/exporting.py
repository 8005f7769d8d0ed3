"""``export``: a trained student as a file for other programs, checked against the student before it is kept."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from kdx.batch import Batch
from kdx.errors import ExportError, FileError
from kdx.experiment.recipe_files import load_recipe, plugins_beside
from kdx.experiment.run_files import RECIPE, read_recipe
from kdx.experiment.trained import TrainedModel, load, weights_file
from kdx.files import atomic_write
from kdx.registry import Plugins
from kdx.stage_name import split_name
from kdx.training.checkpoint import export_weights
from kdx.trust import Rule, Trusted, trusting

__all__ = ["Target", "check_inputs", "export"]

Target = Literal["safetensors", "torch-export", "onnx", "hf"]
ENDINGS: dict[str, str] = {"safetensors": ".safetensors", "torch-export": ".pt2", "onnx": ".onnx", "hf": ""}
ROWS = 64
"""Test rows whose outputs are compared."""
TOLERANCE: dict[str, float] = {"safetensors": 0.0, "torch-export": 1e-5, "onnx": 1e-4, "hf": 1e-6}
"""Largest difference of an output, relative to the largest output, or to 1 if that is larger.

float32 carries about 1e-7, and another runtime adds up in another order. Weights that are read again give the same
bits, but for ``hf``, which may choose another kernel.
"""


def export(
    run: str | Path,
    to: Target,
    out: str | Path | None = None,
    *,
    stage: str = "distilled",
    inputs: Tensor | None = None,
    trust: Trusted = (),
    plugins: Plugins | None = None,
) -> tuple[Path, float]:
    """Writes a run's student as a file that needs no kdx, and compares what is loaded from it with the student.

    Args:
        run: see :func:`kdx.load`.
        to: ``safetensors`` (the weights with their description, which :func:`kdx.load` reads), ``torch-export``
            (``torch.export.load``), ``onnx``, or ``hf`` (a folder for ``from_pretrained``, of a model of transformers:
            config, weights, and the tokenizer's files where the data of the run have one; adapters of peft are merged
            into the weights). The number of rows of the inputs stays free.
        out: the file, or the folder of ``hf``; by default beside the run's weights, as ``student.onnx``. One that is
            there is replaced when the new one has passed; a folder is not, and neither are the run's own weights, which
            are what ``safetensors`` would write.
        stage: see :func:`kdx.load`.
        inputs: ``[N, ...]`` to compare outputs on, two rows or more; None: the first test rows of the run.
        trust: see :func:`kdx.load`.
        plugins: see :func:`kdx.load`.

    Returns:
        The path, and the largest difference of an output, relative to the largest output.

    Raises:
        ExportError: the model cannot be written in this form, or what was loaded from the file gives other outputs; the
            file is then not kept.
        ModuleNotFoundError: a package that the form needs is not installed; it says which.
        FileError: there are no such run, no test data, or no place for the file.
    """
    if to not in get_args(Target):
        raise ExportError(f"to: expected one of {', '.join(get_args(Target))}, got {to!r}")
    student = load(run, stage=stage, trust=trust, plugins=plugins)
    source: Any = None
    if inputs is None:
        inputs, source = check_inputs(run, student, trust=trust, plugins=plugins)
    given = Batch(inputs)
    if given.rows < 2:
        raise ExportError(f"inputs: expected two rows or more, so that their number stays free, got {given.rows}")
    folder, model = split_name(stage)
    beside = Path(run, folder) if Path(run).is_dir() else Path(run).parent
    path = Path(out) if out else beside / f"{model or 'student'}{ENDINGS[to] or '-hf'}"
    if not path.parent.is_dir():
        raise FileError(f"{path} cannot be written: there is no folder {path.parent}")
    if to == "hf" and path.exists():
        raise FileError(f"{path} is there already; give another folder, or remove it")
    with torch.no_grad():
        expected = {rows: student(given.at(slice(rows)).inputs) for rows in (given.rows, 1)}
    if not isinstance(expected[1], Tensor):
        raise ExportError(
            "a model of several heads has several outputs, of which no single file is made; export a head"
        )
    differences: list[float] = []
    own = weights_file(run, stage)
    if to == "safetensors" and path.resolve() == own.resolve():
        again = _without_gradient(load(own, trust=trust, plugins=plugins))
        found = {rows: again(given.at(slice(rows)).inputs) for rows in expected}
        return path, max(_difference(found[rows], outputs) for rows, outputs in expected.items())

    def write(temporary: Path) -> None:
        again = _WRITERS[to](student, inputs, temporary)
        for rows, outputs in expected.items():
            differences.append(_difference(again(given.at(slice(rows)).inputs), outputs))
        if not max(differences) <= (allowed := _tolerance(to, student.model)):
            raise ExportError(
                f"the {to} file gives other outputs than the student: the largest difference is {max(differences):.2g} "
                f"of the largest output, and {allowed:.0e} is allowed; it is not kept"
            )

    if to == "hf":
        write(path)
        if callable(save := getattr(source, "save_tokenizer", None)):
            save(path)
    else:
        atomic_write(path, write)
    return path, max(differences)


def _tolerance(to: Target, model: nn.Module) -> float:
    """Adapters that are merged are added to weights that carry so many digits."""
    if to != "hf" or not _has_adapters(model):
        return TOLERANCE[to]
    return max(4 * torch.finfo(each.dtype).eps for each in model.parameters()) + 1e-5


def _has_adapters(model: nn.Module) -> bool:
    return callable(getattr(model, "merge_and_unload", None))


def check_inputs(
    run: str | Path, student: TrainedModel, *, trust: Trusted = (), plugins: Plugins | None = None
) -> tuple[Any, Any]:
    """The inputs of the first test rows of a run, and the data set of its training rows.

    Raises:
        FileError: the run has no recipe, or its data cannot be read; it says what to do.
    """
    from kdx.experiment.data import ExperimentData, rows_at_once

    folder = Path(run)
    if not (folder / RECIPE).is_file():
        raise FileError(
            f"{folder} is no folder of a run, so there are no test rows to compare outputs on; give inputs= "
            "(--inputs FILE)"
        )
    read_recipe(folder)
    known = (plugins or plugins_beside(folder / RECIPE)).beside(student.files)
    try:
        recipe = load_recipe(folder / RECIPE, plugins=known, trust=trust)
        with trusting(Rule.of(trust, known)):
            data = ExperimentData(recipe, known)
            test: Any = data.test
            rows = min(ROWS, len(test), max(2, rows_at_once(data.whole)))
            return student.task.collate([test[row] for row in range(rows)]).inputs, data.whole
    except Exception as error:
        raise FileError(
            f"the test rows of {folder}, to compare outputs on, cannot be read ({error}); give inputs= (--inputs FILE)"
        ) from error


class _Outputs(nn.Module):
    """The model alone, returning the tensor that the task takes."""

    def __init__(self, student: TrainedModel) -> None:
        super().__init__()
        self.student = student

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.student(inputs)
        return found


Again = Callable[[Tensor], Tensor]


def _safetensors(student: TrainedModel, inputs: Tensor, path: Path) -> Again:
    export_weights(student.model, path, student.description.metadata())
    loaded = load(path, trust=True)
    return _without_gradient(loaded)


def _torch_export(student: TrainedModel, inputs: Tensor, path: Path) -> Again:
    rows = torch.export.Dim("rows", min=1)
    shapes: Any = {name: {0: rows} for name in inputs} if isinstance(inputs, Mapping) else {0: rows}
    try:
        with torch.no_grad():
            program = torch.export.export(_Outputs(student), (inputs,), dynamic_shapes=(shapes,), strict=False)
    except Exception as error:
        raise ExportError(f"torch.export cannot take the model: {_first_line(error)}") from error
    with path.open("wb") as file:
        torch.export.save(program, file)
    with path.open("rb") as file:
        return _without_gradient(torch.export.load(file).module())


def _onnx(student: TrainedModel, inputs: Tensor, path: Path) -> Again:
    try:
        import onnxruntime  # type: ignore[import-untyped]
        import onnxscript  # noqa: F401  # torch.onnx needs it
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'export to onnx needs {error.name}: pip install "kdx[onnx]"', name=error.name
        ) from error
    if isinstance(inputs, Mapping):
        raise ExportError(
            f"onnx: inputs by name ({', '.join(inputs)}) are not exported to it; export to hf, torch-export or "
            "safetensors"
        )
    rows = torch.export.Dim("rows", min=1)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own exporter about itself
            torch.onnx.export(
                _Outputs(student),
                (inputs,),
                str(path),
                input_names=["inputs"],
                output_names=["outputs"],
                dynamic_shapes=({0: rows},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(f"torch.onnx cannot take the model: {_first_line(error)}") from error
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def run(rows: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"inputs": rows.numpy()})[0])

    return run


def _hf(student: TrainedModel, inputs: Tensor, path: Path) -> Again:
    model: Any = student.model
    if _has_adapters(model):
        model = copy.deepcopy(model).merge_and_unload()
    if not hasattr(model, "save_pretrained") or not hasattr(type(model), "from_pretrained"):
        raise ExportError(
            f"hf: {type(model).__name__} is no model of transformers, which alone have save_pretrained; export it to "
            "safetensors, torch-export or onnx"
        )
    model.save_pretrained(path)
    again = type(model).from_pretrained(path, local_files_only=True)
    return _without_gradient(TrainedModel(again, student.description, student.task))


_WRITERS: dict[str, Callable[[TrainedModel, Tensor, Path], Again]] = {
    "safetensors": _safetensors,
    "torch-export": _torch_export,
    "onnx": _onnx,
    "hf": _hf,
}


def _without_gradient(model: Callable[[Tensor], Tensor]) -> Again:
    def run(inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return model(inputs)

    return run


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest output; infinite for other shapes and values not finite."""
    if found.shape != expected.shape or not bool(found.isfinite().all()):
        return float("inf")
    scale = max(1.0, expected.abs().max().item())
    return (found.double() - expected.double()).abs().max().item() / scale


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
