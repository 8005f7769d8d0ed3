"""A recipe with a section search: checked as a recipe is, at every option and end, and held to the rule of trust."""

from pathlib import Path

import pytest
import yaml
from kdx_search.search_recipe import load_search

from kdx.errors import RecipeError, TrustError

WIDTH = {"student.model.hidden": [{"low": 4, "high": 32}]}


def test_a_trial_is_short_and_has_no_controls_and_the_chosen_student_is_as_the_recipe_says(tiny) -> None:
    search = load_search({**tiny(), "controls": ["alone"]}, {"search.trials": 5, "train": {"epochs": 7}})
    point = search.space.first() | {"knowledge.kd": "dkd"}
    trial, whole = search.trial(point), search.whole(point)
    assert (trial.train.epochs, trial.controls) == (1, [])
    assert (whole.train.epochs, whole.controls) == (7, ["alone"])
    assert trial.student.model == whole.student.model
    assert whole.student.model.options == {"hidden": [4, 8]}
    assert whole.knowledge["kd"].name == "dkd"
    assert search.settings.trials == 5


def test_two_searches_that_differ_in_their_length_alone_are_one(tiny) -> None:
    one, longer = load_search(tiny()), load_search(tiny(trials=9, tolerance=0.01))
    assert one.identity == longer.identity
    assert one.identity != load_search(tiny(epochs=2)).identity
    assert one.identity != load_search({**tiny(), "seed": 1}).identity


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"search": None}, "no section search"),
        ({"search": {"space": WIDTH, "trails": 3}}, r"search\.trails: unknown key; .*trials"),
        ({"search": {"space": WIDTH, "trials": 0}}, r"search\.trials: .*greater than or equal to 1"),
        ({"search": {"space": WIDTH, "max_flops": "fast"}}, "flops must be a share of the teacher"),
        ({"search": {"space": WIDTH, "epochs": 1, "steps": 5}}, "give epochs or steps"),
        ({"search": {"space": {"student.model.depth": {"low": 1, "high": 2}}}}, r"student\.model\.depth=1: .*'depth'"),
        (
            {"search": {"space": {"knowledge.kd": {"choices": [{"name": "soft-targets"}, {"name": "sof-targets"}]}}}},
            "knowledge.kd=sof-targets: .*soft-targets",
        ),
        (
            {"search": {"space": {"knowledge.kd.temperature": {"low": 1, "high": 4}, "task.wight": 1}}},
            "wight",
        ),
    ],
)
def test_what_is_wrong_is_named_before_anything_runs(change, message, tiny) -> None:
    with pytest.raises(RecipeError, match=message):
        load_search({**tiny(), **change})


def test_a_stream_needs_the_steps_of_the_short_distillation(tiny) -> None:
    stream = tiny()
    stream["data"]["stream"] = {}
    stream["train"] = stream["teacher"]["train"] = {"steps": 20}
    space = {"student.model.hidden": {"choices": {"small": [4], "large": [8]}}}
    with pytest.raises(RecipeError, match="a stream has no end"):
        load_search({**stream, "search": {"space": space}})
    search = load_search({**stream, "search": {"space": space, "steps": 5}})
    assert search.trial(search.space.first()).train.steps == 5


MODULE = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nfrom kdx.models import MLP as Net\n"


@pytest.mark.parametrize("place", ["option", "outside", "interpolation", "override"])
def test_nothing_runs_that_its_user_did_not_name(tmp_path: Path, place, tiny) -> None:
    recipe, folder = tiny(), tmp_path / "recipes"
    folder.mkdir()
    (folder / "mine.py").write_text(MODULE)
    (tmp_path / "theirs.py").write_text(MODULE)
    if place == "option":
        options = [{"name": "mlp", "hidden": [8]}, {"name": "derived", "config": {"base": {"target": "os:system"}}}]
        recipe["search"]["space"] = {"student.model": {"choices": options}}
    if place == "outside":
        recipe["search"]["space"] = {"student.model": {"choices": [{"name": "mlp"}, {"name": "../theirs.py:Net"}]}}
    if place == "interpolation":
        recipe["search"]["space"]["task.weight"] = {"choices": ["${oc.env:HOME}", 1.0]}
    overrides = {"search.space": {"summary": "${oc.env:HOME}"}} if place == "override" else {}
    (folder / "search.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(TrustError):
        load_search(folder / "search.yaml", overrides)
    assert not (tmp_path / "ran").exists()
    if place == "outside":
        trusted = load_search(folder / "search.yaml", trust=str(tmp_path / "theirs.py"))
        assert (tmp_path / "ran").exists()
        assert trusted.space.dimensions()["student.model"].options.keys() == {"mlp", "../theirs.py:Net"}
