"""Plans of stages before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdx.cli.app import app
from kdx.errors import KdxError, PlanError, RecipeError
from kdx.experiment.plan import stages_of
from kdx.experiment.recipe_files import check_recipe, load_recipe, recipe_names
from kdx.ref import Ref
from kdx.stage import Stage, Term, in_order
from tests.experiment.tiny import NET, TINY, recipe


def test_stages_run_after_those_they_need_in_the_given_order_where_it_is_one() -> None:
    stages = [
        Stage("distilled", "distilled", NET, ("b", "a")),
        Stage("b", "assistant", NET, ("teacher",)),
        Stage("a", "assistant", NET, ("b",), start="teacher"),
        Stage("teacher", "teacher", NET),
        Stage("alone", "alone", NET),
    ]
    assert [stage.name for stage in in_order(stages)] == ["teacher", "b", "a", "distilled", "alone"]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([Stage("a", "alone", NET), Stage("a", "alone", NET)], "two stages are named 'a'"),
        (
            [Stage("a", "distilled", NET, ("teecher",)), Stage("teacher", "teacher", NET)],
            "unknown teacher 'teecher'.*'teacher'",
        ),
        ([Stage("a", "distilled", NET, start="hint")], "stage 'a' names an unknown stage 'hint'"),
        (
            [Stage("a", "assistant", NET, ("b",)), Stage("b", "assistant", NET, ("a",))],
            "need each other in a circle: .*a.*needs.*b",
        ),
        ([Stage("a", "assistant", NET, ("a",))], "circle: a needs a"),
    ],
)
def test_a_plan_that_is_none_says_why(stages: list[Stage], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        in_order(stages)


def test_a_stage_is_named_like_a_folder_and_has_a_known_role() -> None:
    with pytest.raises(PlanError, match=r"stage name '\.\./x' must consist of"):
        Stage("../x", "alone", NET)
    with pytest.raises(PlanError, match="unknown role 'assistent'; did you mean 'assistant'"):
        Stage("x", "assistent", NET)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (Stage("x", "assistant", NET, scheme=Ref("offlin")), r"stage x: scheme\.name: .*did you mean 'offline'"),
        (Stage("x", "assistant", NET, train={"epocs": 2}), r"stage x: train\.epocs"),
        (
            Stage("x", "assistant", NET, knowledge={"kd": Term("dkd", beeta=1)}),
            r"stage x: knowledge\.kd \(dkd\): unknown option 'beeta'",
        ),
        (Stage("x", "assistant", Ref("mlp", hiden=[3])), r"stage x: model \(mlp\): unknown option 'hiden'"),
    ],
    ids=["scheme", "train", "knowledge", "model"],
)
def test_bad_overrides_of_a_stage_are_named_before_anything_runs(stage: Stage, message: str, planned) -> None:
    with pytest.raises(RecipeError, match=message):
        stages_of(recipe(assistant=planned([stage, Stage("distilled", "distilled", NET, ("teacher",))])))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (lambda: None, "assistant 'given': expected a list of kdx.Stage, got None"),
        (lambda: [{"name": "distilled"}], r"assistant 'given': expected a list of .*, got \[\{'name': 'distilled'\}\]"),
        (
            lambda: [Stage("distilled", "distilled", "mlp", ("teacher",))],
            r"stage 'distilled': model: expected a Ref or a Structure, got 'mlp'; write kdx\.Ref\(name",
        ),
        (
            lambda: [Stage("distilled", "distilled", NET, ("teacher",), scheme={"name": "offline"})],
            r"stage 'distilled': scheme: expected a Ref, got \{'name': 'offline'\}; write kdx\.Ref\(name",
        ),
        (
            lambda: [Stage("distilled", "distilled", NET, ("teacher",), knowledge={"kd": Ref("dkd")})],
            r"stage 'distilled': knowledge: expected terms, got Ref\('dkd'\) for 'kd'; write kdx\.Term\(name",
        ),
        (
            lambda: [Stage("distilled", "distilled", NET, "teacher")],
            r"stage 'distilled': teachers: expected a tuple of names, got 'teacher'; write \('teacher',\)",
        ),
        (
            lambda: [Stage("distilled", "distilled", NET)],
            "stage 'distilled' names no teacher, and scheme 'offline' needs one: name earlier stages in teachers",
        ),
    ],
    ids=["nothing", "mappings", "a name as model", "a scheme", "a term", "a name as teachers", "no teacher"],
)
def test_what_an_assistant_plans_wrongly_is_named(stages, message: str, planned) -> None:
    with pytest.raises(PlanError, match=message):
        stages_of(recipe(assistant=planned(stages())))


def test_the_last_stage_of_a_plan_trains_the_student(planned) -> None:
    with pytest.raises(
        PlanError, match="the last stage of a plan trains the student and is named 'distilled', got 'x'"
    ):
        stages_of(recipe(assistant=planned([Stage("x", "assistant", NET)])))


def test_options_of_an_assistant_that_do_not_go_together_are_an_error_of_the_recipe() -> None:
    with pytest.raises(RecipeError, match=r"assistant \(takd\): give the assistants by models or by sizes"):
        stages_of(recipe(assistant={"name": "takd"}))
    with pytest.raises(RecipeError, match=r"assistant \(born-again\): generations must be >= 1"):
        stages_of(recipe(assistant={"name": "born-again", "generations": 0}, teacher=None))


def test_a_dry_run_prints_the_stages_and_who_teaches_them(tmp_path: Path) -> None:
    path = tmp_path / "chain.yaml"
    path.write_text(recipe(assistant={"name": "dgkd", "models": [{"name": "mlp", "hidden": [12]}]}).yaml())
    result = CliRunner().invoke(app, ["run", str(path), "--dry-run"])
    assert result.exit_code == 0
    assert "#   assistant-1, taught by teacher\n#   distilled, taught by teacher, assistant-1\n" in result.stdout
    path.write_text(result.stdout)
    assert load_recipe(path).assistant.name == "dgkd"  # what was printed is a recipe


@pytest.mark.parametrize("option", [{"dtype": "bf16"}, {"device": "cpu"}, {"batch_statistics": True}])
def test_how_a_finished_teacher_is_held_is_refused_for_one_that_is_trained_along(option) -> None:
    with pytest.raises(RecipeError, match="trains the teacher along, as the student is trained; remove dtype"):
        stages_of(recipe(scheme={"name": "online"}, teacher={"model": TINY["teacher"]["model"], **option}))


def test_a_training_of_its_own_is_refused_for_a_teacher_that_is_trained_along() -> None:
    untrained = {"model": TINY["teacher"]["model"]}
    message = r"teacher\.train: scheme 'online' trains the teacher along, .* train says; got batch_size, epochs; remove"
    with pytest.raises(RecipeError, match=message):
        stages_of(recipe(scheme={"name": "online"}, teacher=TINY["teacher"]))
    resolved = recipe(scheme={"name": "online"}, teacher=untrained)  # its dump spells the defaults out
    assert [stage.name for stage in stages_of(check_recipe(resolved.dump()))] == ["alone", "distilled"]


def test_a_teacher_of_a_name_that_is_no_folder_is_refused() -> None:
    small = {"model": {"name": "mlp"}}
    with pytest.raises(PlanError, match=r"stage name '\.\./x' must consist of"):
        stages_of(recipe(scheme={"name": "dense-guidance"}, teachers={"../x": small}))


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_that_comes_with_kdx_has_a_plan(name: str) -> None:
    stages = stages_of(load_recipe(name))
    assert stages[-1].name == "distilled"
    assert len({stage.name for stage in stages}) == len(stages)


def test_every_error_is_one_of_kdx() -> None:
    assert issubclass(PlanError, KdxError)
