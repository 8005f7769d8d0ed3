"""``run``: a recipe becomes a folder with trained models, metrics and a report."""

from __future__ import annotations

import functools
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from kdx.assistants.gap import NoGainWarning, WeakTeacherWarning, gap_warnings, no_gain_warning
from kdx.errors import RecipeError, RunExistsError, StopRun
from kdx.experiment.assembly import Assembly
from kdx.experiment.components import task_of
from kdx.experiment.data import ExperimentData
from kdx.experiment.environment import environment
from kdx.experiment.plan import assistant_of, stages_of
from kdx.experiment.quality import Quality
from kdx.experiment.recipe import Recipe
from kdx.experiment.recipe_files import load_recipe, plugins_beside
from kdx.experiment.rehearsal import rehearse
from kdx.experiment.run_files import (
    CODE,
    ENVIRONMENT,
    PAGE,
    PICTURE,
    RECIPE,
    SUMMARY,
    checksums,
    read_environment,
    read_recipe,
    read_summary,
)
from kdx.experiment.run_folder import RunFolder
from kdx.experiment.stage_runner import StageRunner
from kdx.experiment.teacher_cache import TeacherCache
from kdx.files import atomic_write, refuse_links, remove_leftovers, sha256_of, write_json
from kdx.lock import LOCK, sole_writer
from kdx.observers.dispatch import check_observers, progress_beside
from kdx.registry import Plugins
from kdx.seal import seal_text
from kdx.stage import Stage
from kdx.training.ledger import Compute
from kdx.training.ranks import agreed, is_first
from kdx.trust import Rule, Trusted, trusting

__all__ = ["Experiment", "WeakTeacherWarning", "run"]


def run(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    progress: bool = True,
    observers: Sequence[object] = (),
    report: bool = True,
    plugins: Plugins | None = None,
    trust: Trusted = (),
    **overrides: Any,
) -> dict[str, Any]:
    """Runs a recipe: trains or loads the teacher, trains the student alone and distilled, evaluates, reports.

    Args:
        recipe: name of a recipe (``kdx run --list``), path of a YAML file, its sections as plain values, or a checked
            recipe. Components of one's own are named ``my_models.py:Net``, relative to the file (of a recipe without
            one to the working directory); the run's folder keeps a copy of the file.
        folder: where the run is written; ``runs/<recipe name>`` by default.
        resume: go on with the run in the folder, or start it if there is none; a finished run is only read.
        force: move a run that is in the folder aside, to ``<folder>.old-N``.
        progress: show how far each stage is; see :func:`kdx.fit`.
        observers: see :func:`kdx.fit`; they watch every stage.
        report: whether the pictures and the page of the report are drawn at the end.
        plugins: where components come from; None takes those installed.
        trust: modules that the recipe may name beside kdx and the plugins, as ``"my_models"``, ``.py`` files that are
            not in its folder, and ``"oc.env"`` if it may read environment variables; True: all of them. See
            :mod:`kdx.trust`. It is not kept in the folder: a run that is resumed needs it again.
        **overrides: recipe keys, as ``seed=1``, ``train={"epochs": 2}`` or ``**{"train.epochs": 2}``; a mapping with a
            ``name`` takes the place of the component that is there, every other one is merged.

    Returns:
        The summary, as in ``summary.json``: per stage accuracies, parameters, size, latency, seconds; the gain.

    Raises:
        RecipeError: something in the recipe is wrong; the path to the key is named.
        TrustError: the recipe, or a file of the run that is resumed, names code that is not trusted.
        RunExistsError: the folder holds a run, and neither ``resume`` nor ``force`` was given.
        InUseError: another process runs in the folder.
        Interrupted: the run was stopped by a signal; ``resume`` continues it.
        StopRun: an observer stopped a stage; the summary and the report are of the stages before, and no test row was
            read for this one. ``resume`` says so again.
    """
    check_observers(observers)
    name = Path(recipe).stem if isinstance(recipe, str | Path) else "recipe"
    plugins = plugins_beside(recipe, plugins)
    written = recipe.dump() if isinstance(recipe, Recipe) else recipe
    checked = load_recipe(written, overrides, plugins=plugins, trust=trust)
    experiment = Experiment(
        checked,
        Path(folder or Path("runs") / name),
        [*progress_beside(observers, progress), *observers],
        name=name,
        report=report,
        plugins=plugins,
        trust=trust,
    )
    return experiment.run(resume=resume, force=force)


class Experiment:
    """One recipe in one folder: a plan of stages, each an ordinary run that is resumed by itself.

    Args:
        recipe: what to run.
        folder: where it is written.
        observers: see :func:`kdx.fit`; they watch every stage.
        name: what the report calls it; the folder's name by default.
        teachers: where trained teachers are kept for other runs; ``.teachers`` beside the folder by default.
        notify: called with a sentence for the user when something happens that should not wait for the report.
        report: whether the pictures and the page of the report are drawn at the end.
        test: whether the test rows are read, once after each stage. False for one of many runs among which one is
            chosen: it is judged on its validation rows, ``test`` of its results is empty, and it has no report.
        plugins: where the components of the recipe come from; None takes those installed. A component that names
            others itself, as ``residual-sum`` does, takes those installed.
        trust: see :func:`run`.

    Raises:
        PlanError: the stages do not fit together.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        observers: Sequence[object] = (),
        *,
        name: str | None = None,
        teachers: Path | None = None,
        notify: Callable[[str], object] = lambda _: None,
        report: bool = True,
        test: bool = True,
        plugins: Plugins | None = None,
        trust: Trusted = (),
    ) -> None:
        self.recipe = recipe
        self.name = name or folder.name
        self.folder = folder
        self.notify = notify
        self.warnings: list[str] = []
        self.report, self.test = report and test, test
        self.trust, self.rule = trust, Rule.of(trust, plugins)
        self.plugins = self.rule.plugins
        with trusting(self.rule):
            self.plan = stages_of(recipe, self.plugins)
            self.task = task_of(recipe, self.plugins)
        stages = RunFolder(recipe, folder, self.task.metric, notify)
        self.assembly = Assembly(recipe, self.plan, stages, plugins=self.plugins)
        cache = TeacherCache(teachers or folder.parent / ".teachers")
        self.runner = StageRunner(self.assembly, stages, cache, observers, notify, self.name, test=test)

    @property
    def data(self) -> ExperimentData:
        """The rows, read when they are first needed."""
        return self.assembly.data

    def stages(self) -> list[Stage]:
        """The plan, in the order in which it runs."""
        return list(self.plan)

    def run(self, *, resume: bool = False, force: bool = False) -> dict[str, Any]:
        """Runs what is left to run and returns the summary; a finished run is only read.

        Raises:
            RunExistsError: the folder holds a run, and neither ``resume`` nor ``force`` was given.
            InUseError: another process runs in the folder.
            RecipeError: the run in the folder was started with another recipe.
            StopRun: see :func:`run`.
        """
        cpu = self.recipe.device == "cpu"
        with trusting(self.rule), ExitStack() as alone:
            if is_first(cpu=cpu):
                self._claim(alone, resume=resume, force=force)
            finished = agreed(self._finished(), cpu=cpu)
            summary = read_summary(self.folder) if finished else self._run()
            return agreed(summary, cpu=cpu)  # when all processes have written what they write

    def _run(self) -> dict[str, Any]:
        """Runs the stages that are not finished; the first process writes the report and the summary."""
        results: dict[str, dict[str, Any]] = {}
        with threads(self.recipe):
            for stage in self.plan:
                if stage.role in ("assistant", "distilled"):
                    self._guard(results)
                try:
                    results[stage.name] = self.runner.run(stage)
                except StopRun as stop:
                    stop.stage = stage.name
                    self._end(results, stop)
                    raise
            self._guard(results)
            self._judge(results)
            return self._end(results)

    def _end(self, results: Mapping[str, dict[str, Any]], stop: StopRun | None = None) -> dict[str, Any]:
        """Writes the report and the summary of the stages that are finished, and marks the one that was stopped."""
        summary = self._summary(results, stop)
        if not is_first(cpu=self.recipe.device == "cpu"):
            return summary
        if stop is not None and stop.stage is not None:
            self.runner.folder.stop(stop.stage, stop)
        if self.report:
            from kdx.experiment.report import write_report  # imports matplotlib

            write_report(self.folder, summary)
            summary["files"] = checksums(self.folder, self.folder / PAGE, self.folder / PICTURE)
        write_json(self.folder / SUMMARY, summary)  # last, as it says that the run is finished
        return summary

    def _finished(self) -> bool:
        """Whether all stages are finished and summed up; a run that an observer stopped is not."""
        if not all((self.folder / name).exists() for name in (RECIPE, SUMMARY)):
            return False  # a summary without a recipe is something else's
        return not read_summary(self.folder).get("stopped")

    def _claim(self, alone: ExitStack, *, resume: bool, force: bool) -> None:
        """Claims the folder for this run; one that holds something else, or that another run is in, is refused, and a
        recipe that cannot run changes nothing.
        """
        folder = self.folder
        if force or not self._finished():  # else nothing is written
            alone.enter_context(sole_writer(folder))
        begun = (folder / RECIPE).exists()
        if begun and not force:
            refuse_links(folder.iterdir())
            if not resume:
                raise RunExistsError(
                    f"{folder} holds a run already; --resume goes on with it (a finished one is only read), --force "
                    "moves it aside, --folder takes another place"
                )
            read_recipe(folder)
            self._keep_environment()
            self._check_code()
            written = load_recipe(folder / RECIPE, plugins=self.plugins, trust=self.trust)
            if changed := _differences(written.dump(), self.recipe.dump()):
                raise RecipeError(
                    f"the run in {folder} was started with another recipe ({'; '.join(changed)}); resume it with the "
                    "same one, or take another folder"
                )
            remove_leftovers([folder, *filter(Path.is_dir, folder.rglob("*"))])
            return
        if not begun and folder.exists() and not all(_left_by_a_start(path) for path in folder.iterdir()):
            raise RunExistsError(f"{folder} is not empty and holds no run of kdx; take another folder")
        rehearse(self.assembly)
        if begun:
            aside = next(
                path for n in range(1, 10_000) if not (path := folder.with_name(f"{folder.name}.old-{n}")).exists()
            )
            shutil.move(folder, aside)
            (aside / LOCK).unlink()  # it was this run's, which goes on in the new folder
            alone.enter_context(sole_writer(folder))
        write_json(folder / ENVIRONMENT, environment(self.recipe.seed) | {"code": self._copied_code()})
        text = seal_text(self.recipe.yaml())
        atomic_write(folder / RECIPE, lambda path: path.write_text(text))

    def _keep_environment(self) -> None:
        """Checks the environment that the run in the folder was started in; one that was removed is written anew."""
        if (self.folder / ENVIRONMENT).exists():
            read_environment(self.folder)
            return
        if self._finished():
            return  # a finished run is only read
        self.notify(f"warning: {self.folder / ENVIRONMENT} is missing; it is written anew, with the environment of now")
        write_json(self.folder / ENVIRONMENT, environment(self.recipe.seed))

    def _copied_code(self) -> dict[str, dict[str, str]]:
        """Copies the Python files that the recipe names into the folder; returns name -> copy and SHA-256."""
        kept: dict[str, dict[str, str]] = {}
        if (files := self.plugins.files) is None:
            return kept
        for name, copy in files.copies.items():
            path, digest = files.loaded[name], sha256_of(files.loaded[name])
            (self.folder / copy).parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self.folder / copy, functools.partial(shutil.copyfile, path))
            kept[name] = {"copy": copy.as_posix(), "sha256": digest}
            self.notify(f"runs {path} (sha256 {digest[:16]}), which the recipe names")
        return kept

    def _check_code(self) -> None:
        """Checks that the Python files that an unfinished run began with are the same now.

        Raises:
            RecipeError: one has changed.
        """
        files, finished = self.plugins.files, self._finished()
        for name, kept in {} if finished else read_environment(self.folder).get("code", {}).items():
            if files is None or not files.path(name).is_file() or sha256_of(files.path(name)) != kept["sha256"]:
                raise RecipeError(
                    f"{name!r} is not what the run in {self.folder} was started with, of which {kept['copy']} there is "
                    "a copy; put that back, or take another folder"
                )

    def _guard(self, results: Mapping[str, dict[str, Any]]) -> None:
        """Warns, before the student is taught, of a teacher that is too weak or a gap that is too wide."""
        student = next((name for name in ("alone", "distilled") if name in results), None)
        if student is None:
            return
        judged = Quality.of(self.task)
        quality = {name: judged.scaled(result["validation"][judged.metric]) for name, result in results.items()}
        assistant = assistant_of(self.recipe, self.plugins)
        for stage in self.plan:
            if stage.role == "teacher" and stage.name in quality:
                found = gap_warnings(
                    stage.name,
                    quality[stage.name],
                    quality[student],
                    links=assistant.links if assistant else 1,
                    rows=len(self.data.validation),
                    chain=assistant is not None,
                    share=judged.share,
                    higher_is_better=judged.higher_is_better,
                )
                for category, message in found:
                    self._warn(message, category)

    def _judge(self, results: Mapping[str, dict[str, Any]]) -> None:
        """Warns of a distilled student that ends below the student alone."""
        if not {"alone", "distilled"} <= results.keys() or not self.test:
            return
        judged = Quality.of(self.task)
        test = {name: judged.scaled(results[name]["test"][judged.metric]) for name in ("distilled", "alone")}
        message = no_gain_warning(
            **test,
            rows=len(self.data.test),  # type: ignore[arg-type]  # map-style
            metric=judged.metric_label,
            share=judged.share,
            higher_is_better=judged.higher_is_better,
        )
        if message is not None:
            self._warn(message, NoGainWarning)

    def _warn(self, message: str, category: type[UserWarning]) -> None:
        """Says something once, to Python, to whoever is notified and in the report."""
        if message not in self.warnings:
            self.warnings.append(message)
            warnings.warn(message, category, stacklevel=5)
            self.notify(f"warning: {message}")

    def _summary(self, results: Mapping[str, dict[str, Any]], stop: StopRun | None) -> dict[str, Any]:
        quality = Quality.of(self.task)
        judged = "test" if self.test else "validation"
        value = {name: result[judged][quality.metric] for name, result in results.items()}
        return {
            "recipe": self.name,
            "summary": self.recipe.summary,
            "seed": self.recipe.seed,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            **quality.as_dict(),
            "test_rows": len(self.data.test) if self.test else 0,  # type: ignore[arg-type]  # map-style
            "stages": dict(results),
            "gain": quality.gain(value["distilled"], value["alone"])
            if {"alone", "distilled"} <= value.keys()
            else None,
            "compute": sum(
                (Compute.of(result["compute"]) for result in results.values() if "compute" in result), Compute()
            ).as_dict(),
            "stopped": stop and {name: getattr(stop, name) for name in ("stage", "reason", "step", "epoch")},
            "warnings": self.warnings,
            "files": {},
        }


@contextmanager
def threads(recipe: Recipe) -> Iterator[None]:
    """Gives torch as many CPU threads as the recipe asks for, and afterwards as many as it had."""
    before = torch.get_num_threads()
    torch.set_num_threads(recipe.threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _left_by_a_start(path: Path) -> bool:
    """True for a file that a run may have left that was killed before its recipe was written; none depends on it."""
    return any(
        fnmatch(path.name, name) for name in (LOCK, CODE, ENVIRONMENT, f".{ENVIRONMENT}.*.tmp", f".{RECIPE}.*.tmp")
    )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """Keys whose values differ, as ``train.epochs: 2 -> 3``."""
    found = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += _differences(before, after, f"{path}{key}.")
        elif before != after:
            found.append(f"{path}{key}: {before!r} -> {after!r}")
    return found
