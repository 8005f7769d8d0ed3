"""``search``: structure and transfer of a student searched for together, and the chosen one distilled to the end."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdx import Plugins
from kdx.authoring import Rule, Trusted, taking_turns, trusting, write_json
from kdx.errors import KdxError, RunExistsError
from kdx.experiment import Experiment, Quality, cache_teacher, load_recipe, task_of
from kdx_search.front import chosen_of, front_of
from kdx_search.pricing import Prices
from kdx_search.search_recipe import SearchRecipe, load_search
from kdx_search.study import COST, SearchStudy, check_optuna
from kdx_search.trials import TrialRunner
from kdx_search.working import compute_of, counted, work

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

__all__ = ["search"]

STUDY, TRIALS, CHOSEN, SUMMARY, STORE = "study.jsonl", "trials", "chosen", "search.json", "store"


def search(
    recipe: str | Path | Mapping[str, Any],
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    processes: int = 1,
    observers: Sequence[object] = (),
    notify: Callable[[str], object] = lambda _: None,
    keep_trials: bool = False,
    report: bool = True,
    plugins: Plugins | None = None,
    trust: Trusted = (),
    **overrides: Any,
) -> dict[str, Any]:
    """Searches a space of recipes for a student, and distils the chosen one to the end.

    Each trial takes a point of the space, distils its student for a short time and judges it on the validation rows;
    Optuna weighs that quality against the student's cost. The test rows are read once, when the chosen student has
    been distilled as long as the recipe says.

    Args:
        recipe: a recipe with a section ``search``: name of one of this package, path of a YAML file, or plain values.
        folder: where the search is written; ``searches/<name>`` by default. It holds the study, ``search.json``, the
            picture of the front and, in ``chosen``, the run of the chosen student.
        resume: go on with the search in the folder, or begin it; trials that a killed process left go on from their
            checkpoints. A second process that resumes a search under way takes part in it.
        processes: how many work on the trials at a time, started here.
        observers: see :func:`kdx.fit`; they watch the trials of this process and the run of the chosen student.
        notify: called with a sentence about each trial.
        keep_trials: whether the folders of ended trials stay; they hold weights and logs.
        report: whether the picture of the front and the report of the chosen student's run are drawn.
        plugins: where components come from; None takes those installed.
        trust: see :func:`kdx.run`.
        **overrides: keys of the recipe, as ``search={"trials": 8}`` or ``**{"train.epochs": 2}``.

    Returns:
        What is in ``search.json``: trials, front, the chosen one, what all of it computed, and the summary of the
        chosen student's run. While other processes still work on trials ``chosen`` is None.

    Raises:
        KdxError: Optuna is missing or too old; no trial could run.
        RecipeError: the recipe or its space is wrong, no student is within the limits, or the study in the folder is of
            another search.
        RunExistsError: the folder holds a search, and ``resume`` was not given.
        Interrupted: a signal came; ``resume`` goes on.
    """
    check_optuna()
    checked = load_search(recipe, overrides, plugins=plugins, trust=trust)
    place = Path(folder or Path("searches") / checked.name)
    _claim(place, resume=resume)
    if (finished := _finished(place, checked)) is not None:
        return finished
    prices = Prices(checked)
    prices.check_reachable()
    with trusting(Rule.of(trust, checked.plugins)):
        quality = Quality.of(task_of(checked.trial(checked.space.first()), checked.plugins))
    place.mkdir(parents=True, exist_ok=True)
    study = SearchStudy(place / STUDY, checked, higher_is_better=quality.higher_is_better, notify=notify)
    runner = _runner(study, prices, place, quality, observers=observers, notify=notify, keep=keep_trials)
    with _helpers(processes - 1, recipe, overrides, place, trust, keep_trials=keep_trials, plugins=plugins) as joined:
        work(runner)
        joined()
    work(runner)  # what a helper that died has left
    with taking_turns(place / ".end", notify, "the end of the search"):
        if (finished := _finished(place, checked)) is not None:
            return finished
        if running := study.trials("RUNNING"):
            notify(f"{len(running)} trials are at work in other processes; the last of them distils the chosen student")
            return _summary(checked, study, quality, None, {})
        return _end(checked, study, quality, place, observers=observers, notify=notify, report=report)


def _runner(
    study: SearchStudy,
    prices: Prices,
    place: Path,
    quality: Quality,
    *,
    observers: Sequence[object] = (),
    notify: Callable[[str], object] = lambda _: None,
    keep: bool = False,
) -> TrialRunner:
    """The runner of the trials, once the teacher's outputs are stored if all trials learn from them."""
    search, teachers = study.search, place.parent / ".teachers"
    store = place / STORE if search.shares_store else None
    if store is not None:
        with taking_turns(place / ".storing", notify, "the store of the teacher's outputs"):
            cache_teacher(
                search.trial(search.space.first()),
                store,
                teachers=teachers,
                notify=notify,
                plugins=search.plugins,
                trust=search.trust,
            )
    return TrialRunner(study, prices, place / TRIALS, teachers, quality, observers, notify, keep, store)


def _claim(place: Path, *, resume: bool) -> None:
    if (place / STUDY).exists():
        if not resume:
            raise RunExistsError(
                f"{place} holds a search already; --resume goes on with it or takes part in it, --folder takes another "
                "place"
            )
    elif place.exists() and any(not each.name.startswith(".") for each in place.iterdir()):
        raise RunExistsError(f"{place} is not empty and holds no search of kdx; take another folder")


def _finished(place: Path, checked: SearchRecipe) -> dict[str, Any] | None:
    """The summary of a search that is over, if it has as many trials as are asked for now."""
    from kdx.authoring import read_json

    if not (place / SUMMARY).exists():
        return None
    summary = read_json(place / SUMMARY, "remove it and resume the search, which writes it anew", trials=list)
    SearchStudy(place / STUDY, checked, higher_is_better=summary["higher_is_better"])  # of the same search
    return summary if summary["asked_for"] >= checked.settings.trials else None


def _end(
    checked: SearchRecipe,
    study: SearchStudy,
    quality: Quality,
    place: Path,
    *,
    observers: Sequence[object],
    notify: Callable[[str], object],
    report: bool,
) -> dict[str, Any]:
    """Chooses, distils the chosen student to the end and writes what was found."""
    chosen = chosen_of(study, quality, checked.settings.tolerance)
    if chosen is None:
        reasons = {each.user_attrs["reason"] for each in study.trials() if "reason" in each.user_attrs}
        raise KdxError("no trial of the search ended with a quality: " + ("; ".join(sorted(reasons)[:3]) or "none ran"))
    notify(f"trial {chosen.number} is chosen and distilled to the end")
    recipe = checked.whole(study.point(chosen), place / STORE if checked.shares_store else None)
    kept = place / CHOSEN / "recipe.yaml"
    if kept.exists() and load_recipe(kept, plugins=checked.plugins, trust=checked.trust).dump() != recipe.dump():
        shutil.rmtree(place / CHOSEN)  # a longer search chooses anew
    run = Experiment(
        recipe,
        place / CHOSEN,
        observers,
        name=checked.name,
        teachers=place.parent / ".teachers",
        notify=notify,
        report=report,
        plugins=checked.plugins,
        trust=checked.trust,
    ).run(resume=True)
    summary = _summary(checked, study, quality, chosen, run)
    if report:
        from kdx_search.pareto import draw_front  # imports matplotlib

        draw_front(summary, place / "pareto.png")
    write_json(place / SUMMARY, summary)  # last, as it says that the search is over
    return summary


def _summary(
    checked: SearchRecipe, study: SearchStudy, quality: Quality, chosen: FrozenTrial | None, run: Mapping[str, Any]
) -> dict[str, Any]:
    tried = counted(study)
    return {
        "recipe": checked.name,
        "finished": datetime.now(UTC).isoformat(timespec="seconds") if chosen else None,
        **quality.as_dict(),
        "cost": checked.settings.cost,
        "sampler": checked.settings.sampler,
        "asked_for": checked.settings.trials,
        "trials": [
            {
                "number": trial.number,
                "state": trial.state.name.lower(),
                "values": dict(trial.params),
                "quality": trial.values[0] if trial.values else None,
                "cost": trial.user_attrs.get(COST),
                "quality_by_epoch": trial.user_attrs.get("quality_by_epoch", []),
                "reason": trial.user_attrs.get("reason"),
            }
            for trial in tried
        ],
        "refused": len(study.refused()),
        "repeated": len(study.trials()) - len(tried),
        "front": [trial.number for trial in front_of(study, quality)],
        "chosen": chosen.number if chosen else None,
        "compute": compute_of(study).as_dict(),
        "run": dict(run),
    }


@contextmanager
def _helpers(
    count: int,
    recipe: Any,
    overrides: Mapping[str, Any],
    place: Path,
    trust: Trusted,
    *,
    keep_trials: bool,
    plugins: Plugins | None,
) -> Iterator[Callable[[], None]]:
    """Further processes that work on the trials; the block is given a function that waits for them."""
    if count > 0 and plugins is not None:
        raise ValueError("processes: others cannot be given plugins=; install them, or take processes=1")
    context = multiprocessing.get_context("spawn")
    started = [
        context.Process(target=_help, args=(recipe, dict(overrides), place, trust, keep_trials)) for _ in range(count)
    ]
    for each in started:
        each.start()

    def joined() -> None:
        for each in started:
            each.join()

    try:
        yield joined
    finally:
        for each in started:
            if each.is_alive():
                each.terminate()
        joined()


def _help(recipe: Any, overrides: Mapping[str, Any], place: Path, trust: Trusted, keep: bool) -> None:
    """Works on the trials of a search that another process has begun."""
    checked = load_search(recipe, overrides, trust=trust)
    with trusting(Rule.of(trust, checked.plugins)):
        quality = Quality.of(task_of(checked.trial(checked.space.first()), checked.plugins))
    study = SearchStudy(place / STUDY, checked, higher_is_better=quality.higher_is_better)
    work(_runner(study, Prices(checked), place, quality, keep=keep))
