"""The study of a search: its file, who may write it, what a sampler draws, which trials are behind."""

import json
import multiprocessing
import time
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from kdx_search import study as module
from kdx_search.search_recipe import load_search
from kdx_search.study import SearchStudy, behind, check_optuna

from kdx.errors import DamagedError, KdxError, RecipeError


def finished(**attributes):
    return SimpleNamespace(user_attrs={"cost": 10.0, "quality_by_epoch": [0.5, 0.6], **attributes})


@pytest.mark.parametrize(
    ("quality", "epoch", "cost", "expected"),
    [
        (0.49, 1, 10.0, True),
        (0.5, 1, 10.0, False),
        (0.59, 2, 10.0, True),
        (0.1, 3, 10.0, False),  # no other has come so far
        (0.1, 1, 9.0, False),  # none is as cheap
    ],
)
def test_a_trial_is_behind_the_median_of_those_that_cost_no_more(quality, epoch, cost, expected) -> None:
    others = [finished() for _ in range(4)] + [finished(cost=20.0, quality_by_epoch=[0.9, 0.9]) for _ in range(9)]
    assert behind(quality, epoch, cost, others, higher_is_better=True) is expected
    assert behind(-quality, epoch, cost, [], higher_is_better=True) is False


def test_less_is_better_where_the_metric_says_so() -> None:
    others = [finished(quality_by_epoch=[value]) for value in (1.0, 2.0, 3.0, 4.0)]
    assert behind(2.6, 1, 10.0, others, higher_is_better=False)
    assert not behind(2.4, 1, 10.0, others, higher_is_better=False)
    assert not behind(2.6, 1, 10.0, others[:3], higher_is_better=False)  # too few to say


def run(study: SearchStudy, count: int, *, done=True) -> list[dict]:
    points = []
    for _ in range(count):
        trial = study.ask()
        points.append(study.values(trial))
        if done:
            study.finish(trial, float(trial.number % 3), points[-1]["student.model.hidden.0"], {})
    return points


def test_what_is_drawn_follows_from_the_seed_and_the_trials_before(tmp_path: Path, tiny) -> None:
    search = load_search(tiny())
    whole = run(SearchStudy(tmp_path / "whole", search), 14)
    run(SearchStudy(tmp_path / "parts", search), 9)
    parts = SearchStudy(tmp_path / "parts", search)
    assert whole[9:] == run(parts, 5)
    assert [parts.point(each) for each in parts.trials()] == whole
    assert whole != run(SearchStudy(tmp_path / "other", load_search({**tiny(), "seed": 1})), 14)
    randomly = run(SearchStudy(tmp_path / "random", load_search(tiny(sampler="random"))), 14)
    assert randomly[:8] == whole[:8]
    assert randomly[8:] != whole[8:]


def test_the_study_of_another_search_is_refused_with_what_differs(tmp_path: Path, tiny, space) -> None:
    SearchStudy(tmp_path / "study", load_search(tiny()))
    other = space | {"student.model.hidden": [{"low": 4, "high": 64, "step": 4}, 8]}
    with pytest.raises(RecipeError, match=r"of another search \(search\.space\.student\.model\.hidden: .*64"):
        SearchStudy(tmp_path / "study", load_search(tiny(other)))
    with pytest.raises(RecipeError, match=r"search\.sampler: 'tpe' -> 'random'"):
        SearchStudy(tmp_path / "study", load_search(tiny(sampler="random")))


def test_a_study_with_a_value_that_the_space_has_not_is_refused(tmp_path: Path, tiny) -> None:
    search = load_search(tiny())
    study = SearchStudy(tmp_path / "study", search)
    run(study, 1)
    lines = [json.loads(line) for line in (tmp_path / "study").read_text().splitlines()]
    for line in lines:
        if line.get("param_name") == "student.model.hidden.0":
            line["param_value_internal"] = 5.0
    (tmp_path / "study").write_text("".join(json.dumps(line) + "\n" for line in lines))
    changed = SearchStudy(tmp_path / "study", search)
    with pytest.raises(RecipeError, match=r"hidden\.0 is 5 and must be a whole number"):
        changed.point(changed.trials()[0])


@pytest.mark.parametrize(
    "text", ["not a study\n", '{"op_code": 99}\n', "[1, 2]\n", "\x80\x04pickle\n", '{"a": 1}\nxx\n{"b"']
)
def test_a_file_that_is_no_study_is_said_to_be_none(tmp_path: Path, text, tiny) -> None:
    (tmp_path / "study").write_text(text)
    with pytest.raises(DamagedError, match="is no study of kdx search, or damaged"):
        SearchStudy(tmp_path / "study", load_search(tiny()))


def test_the_study_of_another_program_is_said_to_be_none(tmp_path: Path, tiny) -> None:
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study"))
    optuna.create_study(storage=optuna.storages.JournalStorage(backend), study_name="theirs")
    with pytest.raises(DamagedError, match="is no study of kdx search"):
        SearchStudy(tmp_path / "study", load_search(tiny()))


def test_a_line_that_a_killed_process_did_not_finish_is_cut_off(tmp_path: Path, tiny) -> None:
    search = load_search(tiny())
    run(SearchStudy(tmp_path / "study", search), 2)
    whole = (tmp_path / "study").read_text()
    with (tmp_path / "study").open("a") as file:
        file.write('{"op_code": 4, "wor')
    study = SearchStudy(tmp_path / "study", search)
    assert (tmp_path / "study").read_text() == whole
    run(study, 1)
    assert len(SearchStudy(tmp_path / "study", search).trials()) == 3


@pytest.mark.parametrize("version", ["4.4.0", None])
def test_an_optuna_that_is_missing_or_too_old_is_said_with_what_to_install(monkeypatch, version) -> None:
    def found(name):
        if version is None:
            raise module.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(module.metadata, "version", found)
    with pytest.raises(KdxError, match=r"pip install 'optuna>=5\.0'"):
        check_optuna()


def _write(path: Path, recipe, begin) -> None:
    study = SearchStudy(path, load_search(recipe))
    begin.wait(30)
    for _ in range(5):
        with study.alone():
            trial = study.ask()
        study.values(trial)
        study.finish(trial, 0.5, 1.0, {})


@pytest.mark.slow
def test_processes_that_write_one_study_take_no_trial_twice(tmp_path: Path, tiny) -> None:
    context = multiprocessing.get_context("spawn")
    begin = context.Event()
    processes = [context.Process(target=_write, args=(tmp_path / "study", tiny(), begin)) for _ in range(2)]
    for each in processes:
        each.start()
    time.sleep(1)
    begin.set()
    for each in processes:
        each.join(60)
    assert [each.exitcode for each in processes] == [0, 0]
    trials = SearchStudy(tmp_path / "study", load_search(tiny())).trials("COMPLETE")
    assert [each.number for each in trials] == list(range(10))
