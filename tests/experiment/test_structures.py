"""Structures registered as models: named in a recipe, made when their stage begins."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import yaml
from typer.testing import CliRunner

import kdx
from kdx.cli.app import app
from kdx.errors import KdxError, PlanError, RecipeError, TrustError
from kdx.experiment.experiment import Experiment
from kdx.experiment.rehearsal import rehearse
from kdx.experiment.run_files import read_model
from kdx.experiment.verify import verify_run
from kdx.files import write_json
from kdx.ref import Ref
from kdx.registry import default_plugins
from kdx.stage import Produced, Stage, Structure
from kdx.students.from_recipe import DerivedStudent, structure_of
from tests.experiment.tiny import TINY, recipe, same, weights

pytestmark = [
    pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning"),
    pytest.mark.filterwarnings("ignore::kdx.assistants.gap.GapWarning"),
]


@dataclass(frozen=True)
class Searched(Structure):
    """The perceptron that is best on the validation rows without being trained.

    Args:
        widths: of the hidden layer, one of which is chosen.
        needed: stages that it looks at.
        factor: of the weights.
    """

    widths: list[int]
    needed: list[str] | tuple[str, ...] = ("teacher",)
    factor: float = 1.0
    calls = []  # noqa: RUF012

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(self.needed)

    def produce(self, finished) -> Produced:
        self.calls.append(self.widths)
        tried = {width: finished.build(Ref("mlp", hidden=[width, 8])) for width in self.widths}
        quality = {width: finished.evaluate(model)[finished.metric] for width, model in tried.items()}
        best = max(quality, key=quality.__getitem__)
        weights = {name: self.factor * value for name, value in tried[best].state_dict().items()}
        return Produced(Ref("mlp", hidden=[best, 8]), weights)


class Odd(Structure):
    """Gives whatever it is told to.

    Args:
        what: it gives.
    """

    def __init__(self, *, what: str) -> None:
        if what not in ("nothing", "weights", "error"):
            raise ValueError(f"what must be 'nothing' or 'weights', got {what!r}")
        self.what = what

    def produce(self, finished) -> Produced:
        if self.what == "error":
            raise RuntimeError("out of ideas")
        found = {"nothing": None, "weights": Produced(Ref("mlp", hidden=[4]), {"fc.weight": torch.zeros(2)})}
        return found[self.what]


@pytest.fixture(autouse=True)
def plugin(plugged):
    class Plugin:
        @kdx.hookimpl
        def kdx_models(self):
            return [
                kdx.Spec("searched", f"{__name__}:Searched", "for a test"),
                kdx.Spec("odd", f"{__name__}:Odd", "for a test"),
            ]

    Searched.calls.clear()
    plugged(Plugin(), "structures")


SEARCHED = {"model": {"name": "searched", "widths": [4, 6]}}


def test_a_recipe_names_a_structure_and_it_is_made_once_for_all_stages_that_train_it(run, tmp_path) -> None:
    summary = run(student=SEARCHED)
    folder = tmp_path / "run"
    assert Searched.calls == [[4, 6]]
    made = read_model(folder / "distilled")["model"]
    assert made == read_model(folder / "alone")["model"]
    assert made in ({"name": "mlp", "hidden": [4, 8]}, {"name": "mlp", "hidden": [6, 8]})
    assert summary["stages"]["distilled"]["model"] == "mlp"
    student = kdx.load(folder)
    assert student.description.model == Ref.of(made)
    assert same(student.model.state_dict(), weights(folder, "distilled"))
    found = verify_run(folder)
    assert not found.damaged
    assert {"distilled/model.json", "distilled/start.safetensors"} <= set(found.files)
    (folder / "summary.json").unlink()
    (folder / "distilled" / "result.json").unlink()
    before = weights(folder, "distilled")
    Experiment(recipe(student=SEARCHED), folder).run(resume=True)
    assert Searched.calls == [[4, 6]]
    assert same(before, weights(folder, "distilled"))


def test_stages_of_other_seeds_or_options_make_their_own(run, planned) -> None:
    stages = [
        Stage("first", "assistant", Ref("searched", widths=[4, 6]), ("teacher",)),
        Stage("other", "assistant", Ref("searched", widths=[5, 6]), ("teacher",)),
        Stage("distilled", "distilled", Ref("searched", widths=[4, 6]), ("first",), seed=1),
    ]
    run(assistant=planned(stages), controls=[])
    assert Searched.calls == [[4, 6], [5, 6], [4, 6]]


def test_a_teacher_may_be_made_from_another_stage(run, tmp_path) -> None:
    summary = run(teacher={**TINY["teacher"], "model": {"name": "searched", "widths": [24], "needed": []}}, controls=[])
    assert list(summary["stages"]) == ["teacher", "distilled"]
    assert kdx.load(tmp_path / "run", stage="teacher").description.model == Ref("mlp", hidden=[24, 8])


def test_a_teacher_that_was_made_is_kept_by_what_it_was_made_into(run, tmp_path) -> None:
    def teacher(**options):
        return {**TINY["teacher"], "model": {"name": "searched", "widths": [24], "needed": [], **options}}

    first = run("first", teacher=teacher(), controls=[])
    again = run("again", teacher=teacher(), controls=[])
    wider = run("wider", teacher=teacher(widths=[20]), controls=[])
    assert "reused" not in first["stages"]["teacher"]
    assert "reused" in again["stages"]["teacher"]
    assert "reused" not in wider["stages"]["teacher"]
    assert same(weights(tmp_path / "first", "teacher"), weights(tmp_path / "again", "teacher"))
    other = run("other", teacher=teacher(factor=0.5), controls=[])  # the same model, other weights to begin with
    assert "reused" not in other["stages"]["teacher"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": {"model": {"name": "searched", "width": [4]}}}, r"student\.model \(searched\): unknown option"),
        ({"student": {"model": {"name": "searched", "widths": ["a"]}}}, r"student\.model \(searched\)\.widths"),
        ({"student": {"model": "searched"}}, r"widths"),
        ({"student": {"model": "serached"}}, r"no model named 'serached'; did you mean 'searched'"),
        (
            {"scheme": "mutual", "teacher": None, "peers": [SEARCHED["model"]]},
            r"peers\.0: 'searched' is made when its stage begins, and a peer has no stage; give a number",
        ),
        (
            {"scheme": "online", "teacher": SEARCHED},
            r"teacher\.model: 'searched' is made .* 'online' trains the teacher along",
        ),
    ],
)
def test_a_recipe_is_checked_against_the_structure_as_against_a_model(changes, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(**changes)


def test_what_a_plan_cannot_do_is_said_before_anything_runs(tmp_path) -> None:
    for student, error, message in (
        ({"model": {"name": "odd", "what": "x"}}, RecipeError, r"model \(odd\): what must be 'nothing' or 'weights'"),
        ({**SEARCHED, "weights": "w.safetensors"}, RecipeError, r"student\.weights: the student is made when"),
        ({"model": {"name": "searched", "widths": [4], "needed": ["x"]}}, PlanError, "names an unknown stage 'x'"),
    ):
        with pytest.raises(error, match=message):
            Experiment(recipe(student=student), tmp_path / "run")
    experiment = Experiment(recipe(student=SEARCHED), tmp_path / "run")
    rehearse(experiment.assembly)
    assert not Searched.calls


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nothing", r"stage 'alone': Odd\.produce has to return kdx\.assistants\.Produced\(Ref, weights\), got None"),
        ("error", r"stage 'alone': the structure \(Odd of .*\) raised RuntimeError: out of ideas"),
        ("weights", r"stage 'alone': the weights that Odd gave are not those of the model 'mlp' that it gave"),
    ],
)
def test_what_is_produced_is_checked_before_it_is_kept(run, tmp_path, what: str, message: str) -> None:
    with pytest.raises(KdxError, match=message):
        run(student={"model": {"name": "odd", "what": what}})
    assert not (tmp_path / "run" / "alone" / "model.json").exists()


def test_a_structure_cannot_be_built_by_itself(tmp_path) -> None:
    experiment = Experiment(recipe(), tmp_path / "run")
    with pytest.raises(RecipeError, match=r"model \(searched\): it is made when the stage that trains it begins"):
        experiment.assembly.build(Ref("searched", widths=[4]))


def test_show_lists_the_options_of_a_structure() -> None:
    shown = CliRunner().invoke(app, ["show", "searched"])
    assert shown.exit_code == 0, shown.output
    assert "widths: list[int], required" in shown.stdout
    assert "of the hidden layer, one of which is chosen" in shown.stdout


def test_names_stand_for_structures_by_what_is_registered_under_them() -> None:
    plugins = default_plugins()
    assert structure_of(Ref("searched", widths=[4]), plugins) == Searched([4])
    assert isinstance(structure_of(Ref("derived", how="width", params=0.5), plugins), DerivedStudent)
    for model in (Ref("mlp"), Ref("derived", config="student.yaml"), Searched([4])):
        assert structure_of(model, plugins) is model


OWN = '''
from dataclasses import dataclass
from kdx import Ref
from kdx.assistants import Produced, Structure
from kdx.models import MLP


class Net(MLP):
    """A perceptron of one's own.

    Args:
        hidden: sizes.
    """


@dataclass(frozen=True)
class Halved(Structure):
    """Half of what the teacher has.

    Args:
        share: of the teacher's widths.
    """

    share: float = 0.5
    needs = ("teacher",)

    def produce(self, finished):
        hidden = [int(self.share * size) for size in finished.ref("teacher").options["hidden"]]
        return Produced(Ref("mine.py:Net", hidden=hidden))
'''


def test_a_structure_of_ones_own_file_is_named_as_a_model_is(tmp_path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    written = recipe(controls=[]).dump() | {"student": {"model": {"name": "mine.py:Halved", "share": 0.25}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(written))
    kdx.run(tmp_path / "mine.yaml", folder=tmp_path / "run", report=False, progress=False)
    student = kdx.load(tmp_path / "run", trust=True)
    assert student.description.model == Ref("mine.py:Net", hidden=[6, 4])


def test_a_file_of_the_run_names_no_python_file_that_the_recipe_does_not(tmp_path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "other.py").write_text(f"{OWN}\nraise SystemExit('ran')\n")
    written = recipe(controls=[]).dump() | {"student": {"model": {"name": "mine.py:Halved", "share": 0.25}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(written))
    folder = tmp_path / "run"
    kdx.run(tmp_path / "mine.yaml", folder=folder, report=False, progress=False)
    (folder / "summary.json").unlink()
    (folder / "distilled" / "result.json").unlink()
    made = read_model(folder / "distilled")
    kept = {**made, "model": {**made["model"], "name": "other.py:Net"}}
    write_json(folder / "distilled" / "model.json", {"model": kept["model"], "start": False})
    with pytest.raises(
        TrustError, match=r"stage 'distilled': .* its model is 'other\.py:Net', and the recipe names no"
    ):
        kdx.run(tmp_path / "mine.yaml", folder=folder, report=False, progress=False, resume=True)
    write_json(folder / "distilled" / "model.json", {"model": made["model"], "start": False})
    kdx.run(tmp_path / "mine.yaml", folder=folder, report=False, progress=False, resume=True)
