"""``kdx verify`` checks the files of a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from kdx.cli.output import Json, print_json
from kdx.printable import printable

verify_app = typer.Typer()


@verify_app.command("verify", epilog="Example:  kdx verify runs/fashion-offline")
def verify(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, or one of several runs.")],
    as_json: Json = False,
) -> None:
    """Check that all files of a run are as they were written: exit status 1 if one is damaged or missing."""
    from kdx.experiment.run_files import RECIPE, SUMMARY
    from kdx.experiment.verify import verify_run

    inner = [] if (folder / RECIPE).exists() else sorted(path.parent for path in folder.glob(f"*/{RECIPE}"))
    runs = [verify_run(each) for each in (inner if inner and not (folder / SUMMARY).exists() else [folder])]
    if as_json:
        print_json([dataclasses.asdict(run) for run in runs])
    for run in runs if not as_json else ():
        for sentence in run.damaged:
            typer.echo(printable(sentence))
        state = "" if run.finished else ", not finished"
        whole = f"{len(run.damaged)} damaged or missing" if run.damaged else "all as written"
        typer.echo(printable(f"{run.folder}{state}: {len(run.files)} files, {whole}"))
    if any(run.damaged for run in runs):
        raise typer.Exit(1)
