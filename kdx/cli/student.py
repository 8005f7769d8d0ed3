"""``kdx student``: students derived from a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdx.cli.output import Json, Trust, print_json

student_app = typer.Typer(
    name="student",
    help="Derive students from a teacher.",
    epilog="Example:  kdx student make convnet:width=24 --params 25%",
    no_args_is_help=True,
)


@student_app.callback()
def _group() -> None:
    """Derive students from a teacher."""


@student_app.command(
    "make",
    epilog="Examples:  kdx student make convnet:width=24 --params 25%  ·  kdx student make resnet:depth=20 --how depth "
    "--flops 50% --weights teacher.safetensors --out students/shallow.yaml",
)
def make_student(
    teacher: Annotated[str, typer.Argument(help="A model by name, with options as NAME:key=value,key=value.")],
    params: Annotated[str | None, typer.Option(help="Most parameters, such as 25% or 60k.")] = None,
    flops: Annotated[str | None, typer.Option(help="Most operations for one sample, such as 25% or 2M.")] = None,
    latency: Annotated[str | None, typer.Option(help="Longest time for one sample, such as 50% or 2.5ms.")] = None,
    how: Annotated[str | None, typer.Option(help="A derivation by name, as NAME:key=value; width without one.")] = None,
    quantise: Annotated[
        str | None, typer.Option(help="Bits, such as int8 or w4a8; short for --how quantise:to=... of kdx-quant.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="A file of the teacher's weights; without it no weights are copied.")
    ] = None,
    data: Annotated[str, typer.Option(help="The data set whose shapes the teacher has.")] = "fashion-mnist",
    out: Annotated[
        Path, typer.Option(dir_okay=False, help="Where to write the config; weights are written beside it.")
    ] = Path("student.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Derive the largest student within a budget, compare its costs, write what rebuilds it without the teacher."""
    import torch

    import kdx
    from kdx.cli.component_text import parse_component, parse_weights
    from kdx.students.deriving import derive
    from kdx.training.weights import load_weights
    from kdx.trust import Rule, trusting

    if quantise is not None and how is not None:
        raise typer.BadParameter("--quantise is a --how of its own; give one, and derive from the result once more")
    rule = Rule.of(trust or ())
    way_text = how or ("width" if quantise is None else f"quantise:to={quantise}")
    base, way = parse_component("model", teacher, rule), parse_component("student", way_text, rule)
    rows = kdx.make("dataset", data, split="test")
    shape = {"num_classes": rows.num_classes, "input_shape": list(rows.input_shape)}
    with trusting(rule):
        model = kdx.make("model", base, **shape)
    if weights is not None:
        load_weights(model, parse_weights(weights))
    try:
        student = derive(
            model,
            torch.zeros(2, *rows.input_shape),
            how=way,
            params=params,
            flops=flops,
            latency=latency,
            base=base.as_dict(),
            shape=shape,
        )
        files = student.save(out, weights=weights is not None, force=force)
    except ValueError as error:
        if isinstance(error, kdx.KdxError):
            raise
        raise typer.BadParameter(str(error)) from error
    if as_json:
        print_json(student.as_dict() | {"files": [str(file) for file in files]})
        return
    typer.echo(student.table())
    if weights is None:
        typer.echo("no --weights were given, so the teacher is untrained and only the structure was written")
    typer.echo(f"written: {', '.join(map(str, files))}")
    start = f", weights: {files[1]}" if len(files) > 1 else ""
    typer.echo(f"in a recipe: student: {{model: {{name: derived, config: {files[0]}}}{start}}}")
