"""The command ``kdx search``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kdx.authoring import Json, Trust, print_json

__all__ = ["app"]

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(
    "search",
    epilog="Examples:  kdx search fashion-search  ·  kdx search my/recipe.yaml --trials 40 --max-flops 25%  ·  "
    "kdx search fashion-search --resume --processes 2",
)
def search_command(
    recipe: Annotated[
        str | None, typer.Argument(help="Name of a search, or path of a recipe with a section search.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Override keys.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where to write; default searches/RECIPE.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the search in the folder, or join it.")] = False,
    trials: Annotated[int | None, typer.Option(help="Students that are distilled for a short time.")] = None,
    max_flops: Annotated[str | None, typer.Option(help="Most operations of one sample, as 2M or 25%.")] = None,
    max_latency: Annotated[str | None, typer.Option(help="Longest time of one sample, as 2.5ms or 50%.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="How many work on the trials at a time.")] = 1,
    keep_trials: Annotated[bool, typer.Option("--keep-trials", help="Keep the folders of ended trials.")] = False,
    list_searches: Annotated[bool, typer.Option("--list", help="List the searches of this package and stop.")] = False,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Search structure and transfer of a student together under its teacher, and distil the chosen one to the end."""
    from kdx.authoring import printable
    from kdx_search.joint import search
    from kdx_search.search_recipe import search_recipes

    if list_searches or recipe is None:
        known = sorted(search_recipes())
        if as_json:
            print_json(known)
        for name in known if not as_json else ():
            typer.echo(name)
        return
    given = {
        "search.trials": trials,
        "search.max_flops": max_flops,
        "search.max_latency": max_latency,
    }
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    place = folder or Path("searches") / Path(recipe).stem
    summary = search(
        recipe,
        folder=place,
        resume=resume,
        processes=processes,
        keep_trials=keep_trials,
        notify=lambda message: typer.echo(printable(message), err=True),
        trust=trust or (),
        **_parsed(overrides or []),
        **changes,
    )
    if as_json:
        print_json(summary)
    elif summary["chosen"] is not None:
        _print(summary, place)


def _parsed(overrides: list[str]) -> dict[str, Any]:
    from kdx_search.search_recipe import changes_of

    return changes_of(overrides)


def _print(summary: dict[str, Any], place: Path) -> None:
    from rich.console import Console

    from kdx.authoring import printable
    from kdx.experiment import Quality, stages_table
    from kdx_search.pricing import shown_cost

    console, quality = Console(), Quality.read(summary)
    trials = {each["number"]: each for each in summary["trials"]}
    for number in summary["front"]:
        each = trials[number]
        mark = "*" if number == summary["chosen"] else " "
        values = ", ".join(
            f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in each["values"].items()
        )
        cost = shown_cost(summary["cost"], each["cost"])
        typer.echo(printable(f"{mark} trial {number}: {quality.text(each['quality'])}, {cost}; {values}"))
    compute = summary["compute"]
    took = f"{compute['trials']} trials in {compute['seconds']:,.0f} s of training"
    typer.echo(f"{took}; {summary['refused']} points above a limit")
    console.print(stages_table(summary["run"]))
    typer.echo(printable(f"picture: {place / 'pareto.png'}; report: {place / 'chosen' / 'report.html'}"))
