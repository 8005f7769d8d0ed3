"""The ``kdx`` command. Nothing here imports torch before a command needs it."""

from __future__ import annotations

import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from kdx import __version__
from kdx.cli.commands import Commands
from kdx.cli.output import Json, Trust, print_json
from kdx.cli.show import show_app
from kdx.cli.student import student_app
from kdx.cli.use import use_app
from kdx.cli.verify import verify_app
from kdx.errors import ComponentError, DamageWarning, FileError, Interrupted, KdxError, PluginWarning
from kdx.printable import printable

_FORMAT = warnings.formatwarning

app = typer.Typer(
    name="kdx",
    cls=Commands,
    help="Knowledge distillation: recipes, components, plugins and kernels.",
    epilog="Examples:  kdx run fashion-offline  ·  kdx list knowledge  ·  kdx show soft-targets  ·  kdx env",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich takes longer to load than --help may take
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(show_app)
app.add_typer(student_app)
app.add_typer(use_app)
app.add_typer(verify_app)


def main() -> None:
    """The entry point: errors of kdx, of components and of files become one message and a status, not a traceback.

    ``--debug``, wherever it stands, shows the traceback too.
    """
    warnings.formatwarning = _format_warning
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        app(arguments)
    except Interrupted as stop:
        _fail(str(stop), 128 + stop.signum)
    except (KdxError, OSError) as error:
        if debug:
            raise
        way = "; --debug shows where" if isinstance(error, ComponentError) else ""
        _fail(f"{error}{way}", 1)


def _format_warning(message: Any, category: type[Warning], *place: Any, **line: Any) -> str:
    """A warning as text: on one line, without a place in the sources, for a plugin or a file that is left out."""
    if issubclass(category, PluginWarning | DamageWarning):
        return f"kdx: warning: {printable(str(message))}\n"
    return printable(_FORMAT(message, category, *place, **line))


def _fail(message: str, status: int) -> NoReturn:
    from rich.console import Console

    Console(stderr=True).print(f"[bold red]kdx:[/] {_escape(message)}", soft_wrap=True, highlight=False)
    sys.exit(status)


def _escape(text: str) -> str:
    """A text from anywhere, for a console: shown as it is, with nothing in it that a console or a terminal obeys."""
    from rich.markup import escape

    return escape(printable(text))


def _version(show: bool) -> None:
    if show:
        typer.echo(f"kdx {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
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
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Move the run in the folder aside.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe and its stages, and stop.")
    ] = False,
    seeds: Annotated[
        str | None, typer.Option(help="Several seeds, such as 0,1,2: one run each and a table of all.")
    ] = None,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Print a line after every epoch.")] = False,
    list_recipes: Annotated[bool, typer.Option("--list", help="List the recipes and stop.")] = False,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Run a recipe: train the teacher, the student alone and the distilled student, and compare them."""
    from kdx.experiment.recipe_files import load_recipe, plugins_beside, recipe_names

    if list_recipes or recipe is None:
        summaries = {name: load_recipe(name).summary for name in recipe_names()}
        if as_json:
            print_json(summaries)
        for name, summary in summaries.items() if not as_json else ():
            typer.echo(f"{name:20} {summary}")
        return
    plugins = plugins_beside(recipe)
    checked = load_recipe(recipe, overrides or [], plugins=plugins, trust=trust or ())
    if dry_run:
        from kdx.experiment.plan import stages_of

        typer.echo(checked.yaml(), nl=False)
        typer.echo("# stages:")
        for stage in stages_of(checked, plugins):
            taught = f", taught by {', '.join(stage.teachers)}" if stage.teachers else ""
            begins = ([f"student: {stage.start}"] if stage.start else []) + [": ".join(i) for i in stage.starts.items()]
            typer.echo(f"#   {stage.name}{taught}" + (f", begins with {', '.join(begins)}" if begins else ""))
        return
    name = Path(recipe).stem
    options = {"name": name, "plugins": plugins, "trust": trust or []}
    _run(checked, folder or Path("runs") / name, _seeds(seeds), resume, force, verbose, options, as_json)


def _seeds(text: str | None) -> list[int]:
    try:
        return [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise typer.BadParameter(f"expected numbers, such as 0,1,2; got {text!r}", param_hint="--seeds") from None


def _run(
    recipe: Any,
    folder: Path,
    seeds: list[int],
    resume: bool,
    force: bool,
    verbose: bool,
    options: dict[str, Any],
    as_json: bool,
) -> None:
    from rich.console import Console

    console = Console(stderr=as_json)
    with console.status("loading torch") if console.is_terminal else nullcontext():
        from kdx.assistants.gap import GapWarning, NoGainWarning, WeakTeacherWarning
        from kdx.experiment.experiment import Experiment
        from kdx.experiment.recipe_files import check_recipe
        from kdx.experiment.report import seeds_table, stages_table
        from kdx.observers.progress import ProgressBar

    summaries = []
    for seed in seeds or [recipe.seed]:
        target = folder / f"seed-{seed}" if seeds else folder
        one = check_recipe({**recipe.dump(), "seed": seed}, plugins=options["plugins"], trust=options["trust"])
        told: list[str] = []

        def notify(message: str, told: list[str] = told) -> None:
            told.append(message)
            console.print(_escape(message), soft_wrap=True, highlight=False)

        try:
            with warnings.catch_warnings():
                for category in (WeakTeacherWarning, GapWarning, NoGainWarning):
                    warnings.simplefilter("ignore", category)  # notify prints it
                experiment = Experiment(
                    one,
                    target,
                    [ProgressBar(console, verbose=verbose)],
                    teachers=folder.parent / ".teachers",
                    notify=notify,
                    **options,
                )
                summary = experiment.run(resume=resume, force=force)
        except (Interrupted, FileError) as stop:
            if not (target / "recipe.yaml").exists():
                raise
            arguments = [argument for argument in sys.argv[1:] if argument not in ("--resume", "--force")]
            further = f"{stop}\nto continue: kdx {' '.join([*arguments, '--resume'])}"
            if isinstance(stop, FileError):
                raise FileError(further) from stop
            raise Interrupted(further, stop.signum) from stop
        summaries.append(summary)
        console.print(stages_table(summary))
        for message in summary["warnings"]:
            if f"warning: {message}" not in told:
                console.print(f"[yellow]warning:[/] {_escape(message)}")
        console.print(_escape(f"report: {target / 'report.html'}"), soft_wrap=True, highlight=False)
    if seeds:
        console.print(seeds_table(summaries))
    if as_json:
        print_json(summaries if seeds else summaries[0])


@app.command(
    "cache",
    epilog="Examples:  kdx cache fashion-offline data.augment.shift=2 --out stores/fashion  ·  "
    "kdx cache fashion-offline --out stores/sparse --what topk:3@4  ·  kdx cache lm.yaml --out stores/large --from "
    "said.jsonl  ·  kdx cache --verify stores/fashion",
)
def cache_outputs(
    recipe: Annotated[str | None, typer.Argument(help="Name of a recipe, or path of a YAML file.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Override keys.")] = None,
    *,
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Where to write; an interrupted store is continued.")
    ] = None,
    what: Annotated[
        list[str] | None,
        typer.Option(help="logits, hidden[:TAP], topk:K[@T], sample:K[@T] or features:TAP; repeat it for several."),
    ] = None,
    views: Annotated[
        int | None, typer.Option(help="Augmented views of each sample; default 4, or 1 unaugmented.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="fp16 (default), bf16 or fp32.")] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", dir_okay=False, help="Top-k log-probabilities written elsewhere: .jsonl or .parquet."),
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of --from, that they were taken at; default 1.")] = None,
    keep: Annotated[int | None, typer.Option("--k", help="Of --from, how many classes to keep; default all.")] = None,
    of: Annotated[str | None, typer.Option(help="Of --from: about the next token (default), or own.")] = None,
    verify: Annotated[Path | None, typer.Option(help="Check every byte of a store instead.")] = None,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Store the outputs of a recipe's teacher for its training rows; the teacher is trained first if it is not yet.

    With --from no teacher runs: the store is made of log-probabilities that another program wrote, as vLLM does.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=as_json)
    if verify is not None:
        from kdx.store import Store

        files = Store(verify).verify()
        if as_json:
            print_json({"folder": str(verify), "files": files, "damaged": []})
        else:
            typer.echo(f"{verify}: {files} files, all as written")
        return
    if recipe is None or out is None:
        raise typer.BadParameter("give a recipe and --out FOLDER, or --verify FOLDER")
    with console.status("loading torch") if console.is_terminal else nullcontext():
        from kdx.experiment.recipe_files import load_recipe, plugins_beside
        from kdx.experiment.store_command import cache_teacher, import_teacher
        from kdx.observers.progress import ProgressBar

    plugins = plugins_beside(recipe)
    checked = load_recipe(recipe, overrides or [], plugins=plugins, trust=trust or ())
    beside = {"--temperature": temperature, "--k": keep, "--of": of}
    if source is None and (alone := [name for name, value in beside.items() if value is not None]):
        raise typer.BadParameter(f"{alone[0]} goes with --from FILE")
    if source is not None and (what or views):
        raise typer.BadParameter("--from says itself what is stored, in one view; leave out --what and --views")
    if views is None and checked.data.augment is None:
        views = 1
    columns = (TextColumn("[bold]shards"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, disable=not console.is_terminal)
    task = bar.add_task("shards", total=None)

    def progress(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    def notify(message: str) -> None:
        console.print(_escape(message), soft_wrap=True, highlight=False)

    common: dict[str, Any] = {"progress": progress, "plugins": plugins, "trust": trust or (), "dtype": dtype}
    try:
        if source is not None:
            store = import_teacher(checked, out, source, k=keep, temperature=temperature, of=of, **common)
        else:
            store = cache_teacher(
                checked,
                out,
                teachers=Path("runs") / ".teachers",
                observers=[ProgressBar(console)],
                notify=notify,
                what=what,
                views=views,
                **common,
            )
    finally:
        bar.stop()
    manifest = store.manifest
    if as_json:
        print_json({"folder": str(out), "bytes": store.bytes} | manifest.identity())
        return
    per_sample = store.bytes / manifest.rows / manifest.views
    typer.echo(
        f"{out}: {', '.join(manifest.what)} of {manifest.rows:,} samples in {manifest.views} views, "
        f"{store.bytes / 1e6:.2f} MB ({per_sample:.1f} bytes a sample and view); use it with teacher.store.folder={out}"
    )
