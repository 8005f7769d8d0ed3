"""``kdx export``, ``kdx evaluate`` and ``kdx predict``: what becomes of a trained student."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kdx.cli.output import Json, Trust, print_json

__all__ = ["use_app"]

use_app = typer.Typer()
Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, or a .safetensors file of one.")]
Stage = Annotated[str, typer.Option(help="The stage whose model it is, such as distilled, alone or teacher.")]


@use_app.command(
    "export",
    epilog="Examples:  kdx export runs/fashion-offline --to onnx  ·  kdx export runs/mine --to hf --out my-student",
)
def export_student(
    run: Run,
    to: Annotated[str, typer.Option(help="safetensors, torch-export, onnx or hf.")],
    out: Annotated[Path | None, typer.Option(help="The file; beside the weights of the run by default.")] = None,
    inputs: Annotated[
        Path | None, typer.Option(help="A file of inputs to compare outputs on, instead of the run's test rows.")
    ] = None,
    stage: Stage = "distilled",
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Write the student as a file for other programs, after comparing its outputs with the student's."""
    import torch

    from kdx.errors import ExportError
    from kdx.experiment.exporting import export
    from kdx.experiment.trained import load

    rows = None
    if inputs is not None:
        try:
            rows = torch.stack([each for _, each in load(run, stage=stage, trust=trust or ()).read(inputs)])
        except ValueError as error:
            raise ExportError(f"--inputs: {error}") from error
    try:
        path, difference = export(run, to, out, stage=stage, inputs=rows, trust=trust or ())  # type: ignore[arg-type]
    except ModuleNotFoundError as error:
        raise ExportError(str(error)) from error
    if as_json:
        print_json({"file": str(path), "largest_difference": difference})
        return
    typer.echo(f"{path}: loaded again, its outputs are the student's (largest difference {difference:.2g})")


@use_app.command(
    "evaluate",
    epilog="Examples:  kdx evaluate runs/fashion-offline  ·  kdx evaluate runs/flowers --data '{folder: data/new}'  ·  "
    "kdx evaluate runs/table --data '{test: new.csv}'",
)
def evaluate_student(
    run: Run,
    data: Annotated[
        str | None,
        typer.Option(help="A data set {name: ..., option: ...}, or options that replace those of the run's data set."),
    ] = None,
    stage: Stage = "distilled",
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Evaluate the student on the test split of its data set, or of another one."""
    from kdx.experiment.evaluated import evaluate_run

    found = evaluate_run(run, _mapping(data), stage=stage, trust=trust or ())
    if as_json:
        print_json(dict(found))
        return
    for name, value in found.items():
        typer.echo(f"{name:12} {value:.4f}")


@use_app.command(
    "predict",
    epilog="Examples:  kdx predict runs/flowers photo.jpg other.png  ·  kdx predict runs/table new.csv --json",
)
def predict_files(
    run: Run,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Images, CSV tables or arrays.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 1,
    stage: Stage = "distilled",
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Say what the student makes of files: their classes, labels or quantities."""
    from kdx.errors import FileError
    from kdx.experiment.trained import load

    student = load(run, stage=stage, trust=trust or ())
    rows = []
    try:
        for found in student.predict(files):
            row = {"name": found.name, "label": found.label, "values": _plain(found.values)}
            rows.append(row)
            if not as_json:
                typer.echo(f"{found.name}: {_line(found, student.classes, top)}")
    except (ValueError, FileNotFoundError) as error:
        raise FileError(str(error)) from error
    if as_json:
        print_json(rows)


def _mapping(text: str | None) -> Any:
    """A data set on the command line, as YAML writes it."""
    if text is None:
        return None
    import yaml

    from kdx.errors import RecipeError

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--data: expected {{name: ..., option: value}}, got {text!r}") from error
    if not isinstance(value, str | dict) or not all(isinstance(key, str) for key in value):
        raise RecipeError(f"--data: expected {{name: ..., option: value}}, got {text!r}")
    return value


def _plain(values: Any) -> Any:
    return {name: _plain(each) for name, each in values.items()} if isinstance(values, dict) else values.tolist()


def _line(found: Any, classes: Any, top: int) -> str:
    """One prediction in one line."""
    values = found.values
    if isinstance(values, dict):
        return ", ".join(f"{name} {found.label[name] if found.label[name] is not None else '...'}" for name in values)
    if isinstance(found.label, list):
        return ", ".join(map(str, found.label)) or "none"
    if found.label is not None and values.numel() > 1:
        best = values.topk(min(top, values.numel()))
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return ", ".join(f"{k if classes is None else classes[k]} {100 * share:.1f} %" for share, k in pairs)
    if found.label is not None:
        return f"{found.label} ({values.item():.3f})"
    if values.dim() <= 1:
        return " ".join(f"{value:.4g}" for value in values.reshape(-1).tolist())
    return f"values of the shape {list(values.shape)}; --json prints them"
