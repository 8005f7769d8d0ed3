"""The ``kdx`` command. Nothing here imports torch before a command needs it."""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from kdx import __version__
from kdx.cli_student import student_app
from kdx.errors import Interrupted, KdxError

app = typer.Typer(
    name="kdx",
    help="Knowledge distillation: recipes, components, plugins and kernels.",
    epilog="Examples:  kdx run fashion-offline  ·  kdx list knowledge  ·  kdx show soft-targets  ·  kdx env",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich takes longer to load than --help may take
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(student_app)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """The entry point: errors of kdx and of files become one message and a status, not a traceback."""
    try:
        app()
    except Interrupted as stop:
        _fail(str(stop), 128 + stop.signum)
    except (KdxError, OSError) as error:
        _fail(str(error), 1)


def _fail(message: str, status: int) -> NoReturn:
    from rich.console import Console

    Console(stderr=True).print(f"[bold red]kdx:[/] {_escape(message)}", soft_wrap=True, highlight=False)
    sys.exit(status)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, default=str))


def _version(show: bool) -> None:
    if show:
        typer.echo(f"kdx {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(
    "run",
    epilog="Examples:  kdx run fashion-offline  ·  kdx run fashion-offline train.epochs=4 seed=1  ·  "
    "kdx run my/recipe.yaml --folder runs/mine --resume  ·  kdx run fashion-offline --seeds 0,1,2",
)
def run_recipe(
    recipe: Annotated[str | None, typer.Argument(help="Name of a recipe, or path of a YAML file.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Override keys.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where to write; default runs/RECIPE.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Move the run in the folder aside.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe and its stages, and stop.")
    ] = False,
    seeds: Annotated[str | None, typer.Option(help="Several seeds, as 0,1,2: one run each and a table.")] = None,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="A line after every epoch.")] = False,
    list_recipes: Annotated[bool, typer.Option("--list", help="List the recipes and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Run a recipe: train the teacher, the student alone and the distilled student, and compare them."""
    from kdx.recipe import load_recipe, recipe_names

    if list_recipes or recipe is None:
        summaries = {name: load_recipe(name).summary for name in recipe_names()}
        if as_json:
            _print_json(summaries)
        for name, summary in summaries.items() if not as_json else ():
            typer.echo(f"{name:20} {summary}")
        return
    checked = load_recipe(recipe, overrides or [])
    if dry_run:
        from kdx.experiment_plan import plan

        typer.echo(checked.yaml(), nl=False)
        typer.echo("# stages:")
        for stage in plan(checked):
            typer.echo(f"#   {stage.name}" + (f", taught by {', '.join(stage.teachers)}" if stage.teachers else ""))
        return
    name = Path(recipe).stem
    _run(checked, name, folder or Path("runs") / name, _seeds(seeds), resume, force, verbose, as_json)


def _seeds(text: str | None) -> list[int]:
    try:
        return [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise typer.BadParameter(f"expected numbers, as 0,1,2; got {text!r}", param_hint="--seeds") from None


def _run(
    recipe: Any, name: str, folder: Path, seeds: list[int], resume: bool, force: bool, verbose: bool, as_json: bool
) -> None:
    from rich.console import Console

    console = Console(stderr=as_json)
    with console.status("loading torch") if console.is_terminal else nullcontext():
        from kdx.assistants.gap import GapWarning, WeakTeacherWarning
        from kdx.experiment import Experiment
        from kdx.progress import ProgressBar
        from kdx.recipe import check_recipe
        from kdx.report import seeds_table, stages_table

    summaries = []
    for seed in seeds or [recipe.seed]:
        target = folder / f"seed-{seed}" if seeds else folder
        one = check_recipe({**recipe.dump(), "seed": seed})
        told: list[str] = []

        def tell(message: str, told: list[str] = told) -> None:
            told.append(message)
            console.print(_escape(message), soft_wrap=True, highlight=False)

        try:
            with warnings.catch_warnings():
                for category in (WeakTeacherWarning, GapWarning):
                    warnings.simplefilter("ignore", category)  # tell prints it
                experiment = Experiment(
                    one,
                    target,
                    [ProgressBar(console, verbose=verbose)],
                    name=name,
                    teachers=folder.parent / ".teachers",
                    tell=tell,
                )
                summary = experiment.run(resume=resume, force=force)
        except Interrupted as stop:
            arguments = [argument for argument in sys.argv[1:] if argument not in ("--resume", "--force")]
            raise Interrupted(f"{stop}\nto go on: kdx {' '.join([*arguments, '--resume'])}", stop.signum) from stop
        summaries.append(summary)
        console.print(stages_table(summary))
        for message in summary["warnings"]:
            if f"warning: {message}" not in told:
                console.print(f"[yellow]warning:[/] {_escape(message)}")
        console.print(f"report: {target / 'report.html'}", soft_wrap=True, highlight=False)
    if seeds:
        console.print(seeds_table(summaries))
    if as_json:
        _print_json(summaries if seeds else summaries[0])


@app.command(
    "cache",
    epilog="Examples:  kdx cache fashion-offline data.augment.shift=2 --out stores/fashion  ·  "
    "kdx cache fashion-offline --out stores/sparse --what topk:3@4  ·  kdx cache --verify stores/fashion",
)
def cache_outputs(
    recipe: Annotated[str | None, typer.Argument(help="Name of a recipe, or path of a YAML file.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Override keys.")] = None,
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Where to write; an interrupted store is gone on with.")
    ] = None,
    what: Annotated[
        list[str] | None,
        typer.Option(help="logits, topk:K[@T], sample:K[@T] or features:TAP; several times for several."),
    ] = None,
    views: Annotated[
        int | None, typer.Option(help="Augmented views of each sample; default 4, or 1 unaugmented.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="fp16 (default), bf16 or fp32.")] = None,
    verify: Annotated[Path | None, typer.Option(help="Check every byte of a store instead.")] = None,
    as_json: Json = False,
) -> None:
    """Write down what a recipe's teacher says about its training rows, once; the teacher is trained if need be."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=as_json)
    if verify is not None:
        from kdx.store import Store

        files = Store(verify).verify()
        if as_json:
            _print_json({"folder": str(verify), "files": files, "damaged": []})
        else:
            typer.echo(f"{verify}: {files} files, all as written")
        return
    if recipe is None or out is None:
        raise typer.BadParameter("give a recipe and --out FOLDER, or --verify FOLDER")
    with console.status("loading torch") if console.is_terminal else nullcontext():
        from kdx.caching import cache_teacher
        from kdx.progress import ProgressBar
        from kdx.recipe import load_recipe

    checked = load_recipe(recipe, overrides or [])
    if views is None and checked.data.augment is None:
        views = 1
    columns = (TextColumn("[bold]shards"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, disable=not console.is_terminal)
    task = bar.add_task("shards", total=None)

    def progress(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    def tell(message: str) -> None:
        console.print(_escape(message), soft_wrap=True, highlight=False)

    try:
        store = cache_teacher(
            checked,
            out,
            teachers=Path("runs") / ".teachers",
            observers=[ProgressBar(console)],
            tell=tell,
            progress=progress,
            what=what,
            views=views,
            dtype=dtype,
        )
    finally:
        bar.stop()
    manifest = store.manifest
    if as_json:
        _print_json({"folder": str(out), "bytes": store.bytes} | manifest.identity())
        return
    per_sample = store.bytes / manifest.rows / manifest.views
    typer.echo(
        f"{out}: {', '.join(manifest.what)} of {manifest.rows:,} samples in {manifest.views} views, "
        f"{store.bytes / 1e6:.2f} MB ({per_sample:.1f} bytes a sample and view); use it with teacher.store.folder={out}"
    )


@app.command("plugins", epilog="Example:  kdx plugins --json")
def list_plugins(
    timings: Annotated[bool, typer.Option("--timings", help="Slowest import first; name what makes it slow.")] = False,
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
        _print_json(rows)
        return
    for row in sorted(rows, key=lambda row: -row["seconds"]) if timings else rows:
        typer.echo(f"{row['name']}  {row['distribution']} {row['version']}  {row['status']}".rstrip())
        provided = row["cause"] or f"{len(row['components'])} components"
        typer.echo(f"    {provided}; import took {row['seconds']:.3f} s")
        if timings and row["seconds"] >= SLOW:
            blame = f"it imports {', '.join(row['heavy'])}" if row["heavy"] else "it does too much when it is imported"
            typer.echo(
                f"    slow: every kdx command waits for it; {blame}. A module of hooks names components as import "
                "strings and imports nothing else"
            )


@app.command("new-plugin", epilog="Example:  kdx new-plugin kdx-my-loss --kind knowledge")
def write_plugin(
    name: Annotated[str, typer.Argument(help="Name of the package, kebab-case.")],
    kind: Annotated[str, typer.Option(help="knowledge, scheme, assistant, model, dataset or op.")] = "knowledge",
    folder: Annotated[Path, typer.Option(help="Where its folder is made.")] = Path(),
) -> None:
    """Write a plugin package: entry point, a working example, its tests by kdx.testing, a README."""
    from kdx.new_plugin import new_plugin

    target = new_plugin(name, kind, folder)
    typer.echo(f"wrote {target}\nnext: cd {target} && pip install -e '.[test]' && pytest")


@app.command("list", epilog="Example:  kdx list knowledge")
def list_components(
    kind: Annotated[str | None, typer.Argument(help="knowledge, scheme, assistant, model, dataset or op.")] = None,
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
        _print_json(rows)
        return
    width = max((len(str(row["name"])) for row in rows), default=0)
    for row in rows:
        typer.echo(
            f"{row['kind']:10} {row['name']:{width}} {row['summary']}" + (f"  [{row['paper']}]" if row["paper"] else "")
        )


@app.command("show", epilog="Example:  kdx show soft-targets")
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
        options = [
            {"name": option.name, "type": option.type_name, "required": option.required, "doc": option.doc}
            | ({} if option.required else {"default": option.default})
            for option in options_of(target)
        ]
        if as_json:
            shown.append({"kind": kind, **dataclasses.asdict(component.spec), "doc": doc, "options": options})
            continue
        typer.echo(f"{kind} {name}  ({component.plugin}, {component.spec.target})\n\n{doc.split('Args:')[0].strip()}\n")
        if component.spec.paper:
            typer.echo(f"paper: {component.spec.paper}\n")
        typer.echo("options:")
        for option in options:
            default = "required" if option["required"] else f"default {option['default']!r}"
            typer.echo(f"  {option['name']}: {option['type']}, {default}\n      {option['doc']}")
    if as_json:
        _print_json(shown)


@app.command("inspect", epilog="Example:  kdx inspect convnet:width=24 convnet:width=8,stages=2 --figure cka.png")
def inspect_models(
    teacher: Annotated[str, typer.Argument(help="A model by name, with options as NAME:key=value,key=value.")],
    student: Annotated[str, typer.Argument(help="Another one.")],
    data: Annotated[str, typer.Option(help="The data set to compare them on.")] = "fashion-mnist",
    samples: Annotated[int, typer.Option(min=4, help="How many samples of it.")] = 512,
    teacher_weights: Annotated[Path | None, typer.Option(help="Safetensors of the teacher; else untrained.")] = None,
    student_weights: Annotated[Path | None, typer.Option(help="Safetensors of the student; else untrained.")] = None,
    figure: Annotated[Path, typer.Option(help="Where to draw the similarities of all layers.")] = Path("cka.png"),
    max_layers: Annotated[int, typer.Option(min=1, help="Of a model with more, only the outer modules.")] = 24,
    as_json: Json = False,
) -> None:
    """List the layers of two models, how alike they are, and which to pair."""
    from torch.utils.data import DataLoader, Subset

    import kdx
    from kdx.checkpoint import load_weights
    from kdx.layers import compare_layers
    from kdx.model_text import parse_model

    rows = kdx.make("dataset", data, split="train")
    shape = {"num_classes": rows.num_classes, "input_shape": rows.input_shape}
    models = []
    for text, weights in ((teacher, teacher_weights), (student, student_weights)):
        name, options = parse_model(text)
        models.append(kdx.make("model", name, **options, **shape))
        if weights is not None:
            load_weights(models[-1], weights)
    loader = DataLoader(Subset(rows, range(min(samples, len(rows)))), batch_size=128, drop_last=samples >= 128)
    comparison = compare_layers(models[0], models[1], loader, max_layers=max_layers)
    figure.parent.mkdir(parents=True, exist_ok=True)
    comparison.draw(figure)
    if as_json:
        _print_json(comparison.as_dict() | {"figure": str(figure)})
        return
    typer.echo(f"{comparison.table()}\n\nsimilarities of all layers: {figure}")
    if None in (teacher_weights, student_weights):
        typer.echo(
            "weights that were not given are random, and so are similarities: --teacher-weights, --student-weights"
        )


@app.command("env", epilog="Example:  kdx env --json")
def show_environment(as_json: Json = False) -> None:
    """Show versions, GPUs and the kernel backends: which can be used here, and why the others cannot."""
    import platform

    import torch

    from kdx import ops
    from kdx.environment import package_version

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
        _print_json(report)
        return
    for name in ("kdx", "python", "torch", "triton", "cpu_threads"):
        typer.echo(f"{name:12} {report[name] or 'not installed'}")
    typer.echo(f"{'gpus':12} {', '.join(report['gpus']) or 'none'}")
    for name, reason in {**report["backends"], **report["plugin_backends"]}.items():
        typer.echo(f"{name:12} " + ("usable" if reason is None else f"not usable: {reason}"))
