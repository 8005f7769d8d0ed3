"""``kdx plugins``, ``list``, ``show``, ``inspect`` and ``env`` show what there is; ``new-plugin`` makes more."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from kdx import __version__
from kdx.cli.output import Json, Trust, print_json

show_app = typer.Typer()
_MADE = "knowledge, scheme, assistant, model, dataset, task, student or op."
_BOTH = ("teacher", "student")
_KINDS = _MADE.replace(" or op", ", op or command")


@show_app.command("plugins", epilog="Example:  kdx plugins --json")
def list_plugins(
    timings: Annotated[bool, typer.Option("--timings", help="Slowest import first, with what makes it slow.")] = False,
    as_json: Json = False,
) -> None:
    """List the plugin packages: what they provide, and why a broken one was left out."""
    from kdx.registry import KINDS, SLOW, default_plugins

    plugins = default_plugins()
    provides: dict[str, list[str]] = {}
    for kind in KINDS:
        for name, found in plugins.components(kind).items():
            for item in found:
                provides.setdefault(item.plugin, []).append(f"{kind} {name}")
    rows = [dataclasses.asdict(info) | {"components": provides.get(info.name, [])} for info in plugins.infos]
    if as_json:
        print_json(rows)
        return
    for row in sorted(rows, key=lambda row: -row["seconds"]) if timings else rows:
        typer.echo(f"{row['name']}  {row['distribution']} {row['version']}  {row['status']}".rstrip())
        count = len(row["components"])
        provided = row["cause"] or f"{count} component{'s' if count != 1 else ''}"
        typer.echo(f"    {provided}; import took {row['seconds']:.3f} s")
        if timings and row["seconds"] >= SLOW:
            blame = f"it imports {', '.join(row['heavy'])}" if row["heavy"] else "it does too much when it is imported"
            typer.echo(
                f"    slow: every kdx command waits for it; {blame}. A module of hooks names components as import "
                "strings and imports nothing else"
            )


@show_app.command("new-plugin", epilog="Example:  kdx new-plugin kdx-my-loss --kind knowledge")
def write_plugin(
    name: Annotated[str, typer.Argument(help="Name of the package, kebab-case.")],
    kind: Annotated[str, typer.Option(help=_MADE)] = "knowledge",
    folder: Annotated[Path, typer.Option(help="Where to make its folder.")] = Path(),
) -> None:
    """Write a plugin package: entry point, a working example, its tests by kdx.testing, a README."""
    from kdx.cli.new_plugin import new_plugin

    target = new_plugin(name, kind, folder)
    typer.echo(f"wrote {target}\nnext: cd {target} && pip install -e '.[test]' && pytest")


@show_app.command("list", epilog="Example:  kdx list knowledge")
def list_components(
    kind: Annotated[str | None, typer.Argument(help=_KINDS)] = None,
    as_json: Json = False,
) -> None:
    """List components, of one kind or of all, with their papers."""
    from kdx.registry import KINDS, default_plugins

    plugins = default_plugins()
    kinds = KINDS if kind is None else (kind,)
    rows = [
        {"kind": each, "name": name, "plugin": item.plugin, "summary": item.spec.summary, "paper": item.spec.paper}
        for each in kinds
        for name, found in plugins.components(each).items()  # type: ignore[arg-type]  # checked there
        for item in found
    ]
    if as_json:
        print_json(rows)
        return
    width = max((len(str(row["name"])) for row in rows), default=0)
    for row in rows:
        typer.echo(
            f"{row['kind']:10} {row['name']:{width}} {row['summary']}" + (f"  [{row['paper']}]" if row["paper"] else "")
        )


@show_app.command("show", epilog="Example:  kdx show soft-targets")
def show_component(name: Annotated[str, typer.Argument(help="Name of a component.")], as_json: Json = False) -> None:
    """Show a component: what it computes, its options with types, defaults and docs, its paper."""
    import inspect

    from kdx.errors import UnknownNameError, nearest
    from kdx.options import options_of
    from kdx.registry import KINDS, default_plugins

    plugins = default_plugins()
    kinds = [kind for kind in KINDS if name in plugins.components(kind)]
    if not kinds:
        known = {each for kind in KINDS for each in plugins.components(kind)}
        raise UnknownNameError(f"there is no component named {name!r}; {nearest(name, known)}")
    shown = []
    for kind in kinds:
        component = plugins.get(kind, name)
        target = plugins.load(kind, name)
        doc = inspect.getdoc(target) or ""
        has_options = callable(target) and kind != "command"  # a backend is a module
        options = options_of(target) if has_options else []
        if kind == "command":
            doc = f"{component.spec.summary}\n\nkdx {name} --help shows how it is called."
        if as_json:
            rows = [
                {"name": option.name, "type": option.type_name, "required": option.required, "doc": option.doc}
                | ({} if option.required else {"default": option.default_name or option.default})
                for option in options
            ]
            shown.append({"kind": kind, **dataclasses.asdict(component.spec), "doc": doc, "options": rows})
            continue
        typer.echo(f"{kind} {name}  ({component.plugin}, {component.spec.target})\n\n{doc.split('Args:')[0].strip()}\n")
        if component.spec.paper:
            typer.echo(f"paper: {component.spec.paper}\n")
        typer.echo("options:" if options else "options: none")
        for option in options:
            default = "required" if option.required else f"default {option.default_name or repr(option.default)}"
            typer.echo(f"  {option.name}: {option.type_name}, {default}\n      {option.doc}")
    if as_json:
        print_json(shown)


@show_app.command(
    "inspect",
    epilog="Examples:  kdx inspect convnet:width=24 convnet:width=8,stages=2 --figure cka.png  ·  kdx inspect RUN",
)
def inspect_models(
    teacher: Annotated[
        str, typer.Argument(help="A model by name, with options as NAME:key=value,key=value; or the folder of a run.")
    ],
    student: Annotated[str | None, typer.Argument(help="Another model, in the same form; of a run none.")] = None,
    data: Annotated[str, typer.Option(help="The data set to compare them on.")] = "fashion-mnist",
    samples: Annotated[int, typer.Option(min=4, help="Number of samples to compare them on.")] = 512,
    teacher_weights: Annotated[
        str | None, typer.Option(help="A file of the teacher's weights; random ones without.")
    ] = None,
    student_weights: Annotated[
        str | None, typer.Option(help="A file of the student's weights; random ones without.")
    ] = None,
    figure: Annotated[Path, typer.Option(help="Where to draw the similarities of all layers.")] = Path("cka.png"),
    max_layers: Annotated[
        int, typer.Option(min=1, help="Most layers of a model; if it has more, only its outer modules.")
    ] = 24,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """List costs and layers of two models, how alike they are, and which to pair; of a run the costs of its models."""
    if student is None:
        _inspect_run(Path(teacher), as_json=as_json)
        return
    from torch.utils.data import DataLoader, Subset

    import kdx
    from kdx.analysis.cost import measure_cost
    from kdx.analysis.costs import cost_table
    from kdx.analysis.layers import compare_layers
    from kdx.cli.component_text import parse_component, parse_weights
    from kdx.training.weights import load_weights
    from kdx.trust import Rule, trusting

    rule = Rule.of(trust or ())
    refs = [parse_component("model", text, rule) for text in (teacher, student)]
    rows = kdx.make("dataset", data, split="train")
    shape = {"num_classes": rows.num_classes, "input_shape": rows.input_shape}
    models = []
    for ref, weights in zip(refs, (teacher_weights, student_weights), strict=True):
        with trusting(rule):
            models.append(kdx.make("model", ref, **shape))
        if weights is not None:
            load_weights(models[-1], parse_weights(weights))
    loader = DataLoader(Subset(rows, range(min(samples, len(rows)))), batch_size=128, drop_last=samples >= 128)
    example = kdx.Batch.of(next(iter(DataLoader(Subset(rows, [0]))))).inputs
    costs = {name: measure_cost(each, example).as_dict() for name, each in zip(_BOTH, models, strict=True)}
    comparison = compare_layers(models[0], models[1], loader, max_layers=max_layers)
    figure.parent.mkdir(parents=True, exist_ok=True)
    comparison.draw(figure)
    if as_json:
        print_json(comparison.as_dict() | {"costs": costs, "figure": str(figure)})
        return
    typer.echo(f"{cost_table(costs, shares=True)}\n\n{comparison.table()}\n\nsimilarities of all layers: {figure}")
    if None in (teacher_weights, student_weights):
        typer.echo(
            "without --teacher-weights and --student-weights the weights are random, and so are the similarities"
        )


def _inspect_run(folder: Path, *, as_json: bool) -> None:
    from kdx.analysis.costs import cost_table
    from kdx.experiment.run_costs import run_costs

    if not folder.is_dir():
        raise typer.BadParameter(f"{folder} is no folder of a run; give two models to compare, or the folder of a run")
    costs = run_costs(folder)
    if as_json:
        print_json({name.strip(): cost for name, cost in costs.items()})
        return
    typer.echo(cost_table(costs))


@show_app.command("env", epilog="Example:  kdx env --json")
def show_environment(as_json: Json = False) -> None:
    """Show versions, GPUs and the kernel backends: which can be used here, and why the others cannot."""
    import platform

    import torch

    from kdx import ops
    from kdx.experiment.environment import package_version

    report: dict[str, Any] = {
        "kdx": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": package_version("triton"),
        "cpu_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "backends": ops.backends(),
        "plugin_backends": ops.plugin_backends(),
        "build": ops.build_info(),
    }
    if as_json:
        print_json(report)
        return
    for name in ("kdx", "python", "torch", "triton", "cpu_threads"):
        typer.echo(f"{name:12} {report[name] or 'not installed'}")
    typer.echo(f"{'gpus':12} {', '.join(report['gpus']) or 'none'}")
    for name, reason in {**report["backends"], **report["plugin_backends"]}.items():
        typer.echo(f"{name:12} " + ("usable" if reason is None else f"not usable: {reason}"))
