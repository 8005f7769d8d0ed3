"""Stages in one run folder: order, overrides, who teaches, resuming amid them; teachers kept by hash."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import kdx
from kdx.assistants.base import Assistant, ModelRef, Produced, Stage, Structure, in_order
from kdx.cli import app
from kdx.errors import KdxError, PlanError, RecipeError
from kdx.experiment import Experiment
from kdx.experiment_plan import plan
from kdx.hookspecs import Spec, hookimpl
from kdx.recipe import check_recipe, load_recipe, recipe_names
from kdx.registry import default_plugins
from kdx.stream import Stream

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning"),
    pytest.mark.filterwarnings("ignore::kdx.assistants.gap.GapWarning"),
]
NET = ModelRef("mlp")
TINY = {
    "threads": 1,
    "data": {"dataset": {"name": "digits"}, "validation": 100},
    "teacher": {"model": {"name": "mlp", "hidden": [24, 16]}, "train": {"epochs": 1, "batch_size": 128}},
    "student": {"model": {"name": "mlp", "hidden": [8, 8]}},
    "knowledge": {"kd": {"name": "soft-targets"}},
    "train": {"epochs": 1, "batch_size": 128},
}
"""Digits and perceptrons: a stage takes a tenth of a second."""


def recipe(**changes):
    return check_recipe({**TINY, **changes})


@pytest.fixture
def run(tmp_path: Path, monkeypatch):
    """Runs a recipe in a folder without drawing its report, which is tested apart."""
    monkeypatch.setattr("kdx.experiment.write_report", lambda folder, summary: None)

    def _run(name: str = "run", *, given=None, **changes):
        return Experiment(given or recipe(**changes), tmp_path / name).run()

    return _run


@pytest.fixture
def planned():
    """Registers an assistant whose plan is given as a list."""
    plugins = default_plugins()
    names = []

    def _planned(stages: list[Stage]) -> dict[str, str]:
        class Given(Assistant):
            def plan(self, teacher: ModelRef, student: ModelRef) -> list[Stage]:
                return stages

        class Plugin:
            made = Given

            @hookimpl
            def kdx_assistants(self):
                return [Spec("given", f"{__name__}:GIVEN", "for a test")]

        globals()["GIVEN"] = Given
        plugin = Plugin()
        plugins.register(plugin, "given-plan")
        names.append(plugin)
        return {"name": "given"}

    yield _planned
    for plugin in names:
        plugins.manager.unregister(plugin)
        plugins.infos = [info for info in plugins.infos if info.name != "given-plan"]
        plugins._components = {}


def weights(folder: Path, stage: str, name: str = "student") -> dict[str, torch.Tensor]:
    return load_file(folder / stage / f"{name}.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(value.equal(other[name]) for name, value in one.items())


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


def test_a_stage_overrides_scheme_knowledge_training_rows_and_start(run, planned, tmp_path: Path) -> None:
    student = ModelRef("mlp", {"hidden": [8, 8]})
    stages = [
        Stage("first", "assistant", student, ("teacher",), knowledge={"mse": {"name": "logits", "weight": 0.5}}),
        Stage(
            "unmoved",
            "probe",
            student,
            start="first",
            train={"epochs": 2, "schedule": None, "optimizer": {"name": "SGD", "lr": 0.0}},
        ),
        Stage(
            "distilled",
            "distilled",
            student,
            ("unmoved",),
            task_weight=0.0,
            start="unmoved",
            train={"optimizer": {"name": "SGD", "lr": 0.1}},
        ),
    ]
    summary = run(assistant=planned(stages), data={**TINY["data"], "labelled": 200})
    assert list(summary["stages"]) == ["teacher", "alone", "first", "unmoved", "distilled"]
    logged = {
        name: (tmp_path / "run" / name / "metrics.jsonl").read_text() for name in ("first", "unmoved", "distilled")
    }
    assert "term/mse" in logged["first"]
    assert "term/kd" not in logged["first"]
    assert "term/task" in logged["first"]
    assert "term/task" not in logged["distilled"]
    assert same(weights(tmp_path / "run", "first"), weights(tmp_path / "run", "unmoved"))
    assert summary["stages"]["unmoved"]["steps"] == 2 * summary["stages"]["first"]["steps"]
    # its teacher is itself, so that soft targets move nothing
    moved = weights(tmp_path / "run", "distilled")
    for name, value in weights(tmp_path / "run", "unmoved").items():
        torch.testing.assert_close(moved[name], value, atol=1e-5, rtol=0)
    assert summary["stages"]["distilled"]["teachers"] == ["unmoved"]


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (Stage("x", "assistant", NET, scheme={"name": "offlin"}), r"stage x: scheme\.name: .*did you mean 'offline'"),
        (Stage("x", "assistant", NET, train={"epocs": 2}), r"stage x: train\.epocs"),
        (
            Stage("x", "assistant", NET, knowledge={"kd": {"name": "dkd", "beeta": 1}}),
            r"stage x: knowledge\.kd \(dkd\): unknown option 'beeta'",
        ),
        (Stage("x", "assistant", ModelRef("mlp", {"hiden": [3]})), r"stage x: model \(mlp\): unknown option 'hiden'"),
    ],
    ids=["scheme", "train", "knowledge", "model"],
)
def test_bad_overrides_of_a_stage_are_named_before_anything_runs(stage: Stage, message: str, planned) -> None:
    with pytest.raises(RecipeError, match=message):
        plan(recipe(assistant=planned([stage, Stage("distilled", "distilled", NET, ("teacher",))])))


def test_the_last_stage_of_a_plan_trains_the_student(planned) -> None:
    with pytest.raises(
        PlanError, match="the last stage of a plan trains the student and is named 'distilled', got 'x'"
    ):
        plan(recipe(assistant=planned([Stage("x", "assistant", NET)])))


def test_options_of_an_assistant_that_do_not_go_together_are_an_error_of_the_recipe() -> None:
    with pytest.raises(RecipeError, match=r"assistant \(takd\): give the assistants by models or by sizes"):
        plan(recipe(assistant={"name": "takd"}))
    with pytest.raises(RecipeError, match=r"assistant \(born-again\): generations must be >= 1"):
        plan(recipe(assistant={"name": "born-again", "generations": 0}, teacher=None))


def test_a_dry_run_prints_the_stages_and_who_teaches_them(tmp_path: Path) -> None:
    path = tmp_path / "chain.yaml"
    path.write_text(recipe(assistant={"name": "dgkd", "models": [{"name": "mlp", "hidden": [12]}]}).yaml())
    result = CliRunner().invoke(app, ["run", str(path), "--dry-run"])
    assert result.exit_code == 0
    assert "#   assistant-1, taught by teacher\n#   distilled, taught by teacher, assistant-1\n" in result.stdout
    path.write_text(result.stdout)
    assert load_recipe(path).assistant.name == "dgkd"  # what was printed is a recipe


class Smaller(Structure):
    """Half of a stage's first hidden layer, with its weights."""

    needs = ("alone",)
    calls = 0

    def produce(self, earlier) -> Produced:
        type(self).calls += 1
        model = earlier.model("alone")
        ref = ModelRef("mlp", {"hidden": [4, 8]})
        small = earlier.build(ref).state_dict()
        for name, value in model.state_dict().items():
            if small[name].shape == value.shape:
                small[name] = value
            else:
                small[name] = value[tuple(slice(0, size) for size in small[name].shape)].clone()
        assert earlier.example.shape == (1, 1, 8, 8)
        assert 0 < earlier.quality("alone") <= 1
        assert earlier.parameters(ref) == sum(p.numel() for p in earlier.build(ref).parameters())
        return Produced(ref, small)


def test_a_stage_may_produce_its_students_structure_once(run, planned, tmp_path: Path) -> None:
    Smaller.calls = 0
    stages = [
        Stage("kept", "untrained", Smaller()),
        Stage("distilled", "distilled", Smaller(), ("teacher",), start="kept"),
    ]
    run(assistant=planned(stages))
    assert Smaller.calls == 2
    folder = tmp_path / "run"
    assert json.loads((folder / "kept" / "model.json").read_text()) == {
        "name": "mlp",
        "options": {"hidden": [4, 8]},
        "start": True,
    }
    first = "hidden1.0.weight"
    assert weights(folder, "kept")[first].equal(weights(folder, "alone")[first][:4])
    (folder / "summary.json").unlink()
    (folder / "distilled" / "result.json").unlink()
    before = weights(folder, "distilled")
    Experiment(recipe(assistant={"name": "given"}), folder).run(resume=True)
    assert Smaller.calls == 2  # read, not made again
    assert same(before, weights(folder, "distilled"))


class Blind(nn.Linear):
    """A model of three outputs whatever is asked for."""

    def __init__(self, *, num_classes: int = 10, input_shape: tuple[int, ...] = (1, 8, 8)) -> None:
        super().__init__(64, 3)

    def forward(self, x):
        return super().forward(x.flatten(1))


class ToBlind(Structure):
    def produce(self, earlier) -> Produced:
        return Produced(ModelRef("blind"))


class Along(kdx.Offline):
    """Offline distillation that claims to train its teacher."""

    trains_teacher = True
    given: ClassVar[list[nn.Module]] = []

    def __init__(self, student, teacher, *, task, knowledge) -> None:
        self.given.append(teacher)
        super().__init__(student, teacher, task=task, knowledge=knowledge)


@pytest.fixture
def plugin():
    """Registers the model and the scheme of this file."""

    class Plugin:
        @hookimpl
        def kdx_models(self):
            return [Spec("blind", f"{__name__}:Blind", "for a test")]

        @hookimpl
        def kdx_schemes(self):
            return [Spec("along", f"{__name__}:Along", "for a test")]

    plugins, made = default_plugins(), Plugin()
    plugins.register(made, "of-test-stages")
    yield
    plugins.manager.unregister(made)
    plugins.infos = [info for info in plugins.infos if info.name != "of-test-stages"]
    plugins._components = {}


def test_a_produced_structure_that_breaks_the_contract_is_refused_before_it_is_trained(
    run, planned, plugin, tmp_path: Path
) -> None:
    stages = [Stage("distilled", "distilled", ToBlind(), ("teacher",))]
    with pytest.raises(KdxError, match=r"gives \(1, 3\) torch.float32 where the teacher gives \(1, 10\)"):
        run(assistant=planned(stages))
    assert not (tmp_path / "run" / "distilled" / "model.json").exists()


def test_a_scheme_that_trains_its_teacher_is_given_a_new_one_and_no_stage_trains_it(run, plugin) -> None:
    Along.given.clear()
    summary = run(scheme={"name": "along"})
    assert list(summary["stages"]) == ["alone", "distilled"]
    assert [type(teacher).__name__ for teacher in Along.given] == ["MLP"]


def test_hint_then_distil_goes_on_from_the_hint_stages_weights(run, tmp_path: Path) -> None:
    assistant = {"name": "hint-then-distil", "student_layer": "hidden1", "teacher_layer": "hidden1"}
    run(assistant=assistant, controls=["untrained"])
    folder = tmp_path / "run"
    hint, new = weights(folder, "hint"), weights(folder, "untrained")
    moved = {name for name, value in hint.items() if not value.equal(new[name])}
    assert moved
    assert all(name.startswith("hidden1") for name in moved)
    lines = [json.loads(line) for line in (folder / "hint" / "metrics.jsonl").read_text().splitlines()]
    assert all("term/task" not in line for line in lines)


COMMAND = """
import sys, kdx
from kdx.recipe import load_recipe
kdx.run(load_recipe(sys.argv[1]), folder=sys.argv[2], resume=True)
"""


def test_kill_9_in_the_second_stage_of_a_plan_resumes_in_the_second_stage(run, tmp_path: Path) -> None:
    assistant = {"name": "hint-then-distil", "student_layer": "hidden1", "teacher_layer": "hidden1"}
    given = recipe(assistant=assistant, train={"epochs": 12, "batch_size": 128}, controls=[])
    (tmp_path / "recipe.yaml").write_text(given.yaml())
    folder = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", COMMAND, str(tmp_path / "recipe.yaml"), str(folder)]
    process = subprocess.Popen(command, env=environment)
    checkpoints = folder / "distilled" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step-*.pt")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "distilled" / "result.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in (folder / "hint").rglob("*") if path.is_file()}
    resumed: list[int] = []

    class Watch:
        @hookimpl
        def kdx_configure(self, run):
            resumed.append(run.step)

    Experiment(given, folder, [Watch()]).run(resume=True)
    assert len(resumed) == 1  # one stage ran,
    assert resumed[0] > 0  # from its checkpoint
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # the others were only read
    run("whole", given=given)
    for stage in ("hint", "distilled"):
        assert same(weights(folder, stage), weights(tmp_path / "whole", stage)), stage


def test_a_teacher_is_reused_by_hash_and_a_changed_key_trains_anew(run, tmp_path: Path) -> None:
    first = run("one")["stages"]
    again = run("two", train={"epochs": 2, "batch_size": 128}, data={**TINY["data"], "labelled": 200})["stages"]
    assert "seconds" in first["teacher"]
    assert again["teacher"]["reused"] == str(next((tmp_path / ".teachers").iterdir()))
    assert again["teacher"]["test"] == first["teacher"]["test"]
    assert same(weights(tmp_path / "one", "teacher"), weights(tmp_path / "two", "teacher"))
    teacher = TINY["teacher"]
    changes = {
        "seed": {"seed": 1},
        "model": {"teacher": {**teacher, "model": {"name": "mlp", "hidden": [24]}}},
        "train": {"teacher": {**teacher, "train": {"epochs": 1, "batch_size": 64}}},
        "rows": {"data": {**TINY["data"], "validation": 101}},
        "augment": {"data": {**TINY["data"], "augment": {"shift": 1}}},
        "reuse": {"teacher": {**teacher, "reuse": False}},
    }
    for name, change in changes.items():
        assert "seconds" in run(name, **change)["stages"]["teacher"], name
    assert len(list((tmp_path / ".teachers").iterdir())) == len(changes)  # one each, none for reuse=False


def test_the_distilled_student_is_the_same_whether_its_teacher_was_trained_or_reused(run, tmp_path: Path) -> None:
    run("one")
    run("two")
    assert same(weights(tmp_path / "one", "distilled"), weights(tmp_path / "two", "distilled"))


@pytest.mark.parametrize("damage", ["weights", "manifest", "missing"])
def test_a_damaged_kept_teacher_is_told_about_and_trained_anew(damage: str, run, tmp_path: Path) -> None:
    run("one")
    entry = next((tmp_path / ".teachers").iterdir())
    if damage == "weights":
        data = bytearray((entry / "student.safetensors").read_bytes())
        data[-1] ^= 1
        (entry / "student.safetensors").write_bytes(data)
    elif damage == "manifest":
        (entry / "manifest.json").write_text("{")
    else:
        (entry / "student.safetensors").unlink()
    told: list[str] = []
    summary = Experiment(recipe(), tmp_path / "two", tell=told.append).run()
    assert "seconds" in summary["stages"]["teacher"]
    assert any("is damaged" in message and "trained anew" in message for message in told)
    assert "reused" in run("three")["stages"]["teacher"]


def test_a_disk_that_is_full_leaves_no_half_of_a_kept_teacher(run, tmp_path: Path, monkeypatch) -> None:
    def full(path: Path) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kdx.teacher_cache._sha256", full)
    with pytest.raises(OSError, match="No space left"):
        run("one")
    assert list((tmp_path / ".teachers").iterdir()) == []
    monkeypatch.undo()
    summary = Experiment(recipe(), tmp_path / "one").run(resume=True)
    assert "seconds" in summary["stages"]["teacher"]


@pytest.mark.parametrize("option", [{"dtype": "bf16"}, {"device": "cpu"}, {"batch_statistics": True}])
def test_how_a_finished_teacher_is_held_is_refused_for_one_that_is_trained_along(option) -> None:
    with pytest.raises(RecipeError, match="trains the teacher along, as the student is trained; remove dtype"):
        plan(recipe(scheme={"name": "online"}, teacher={**TINY["teacher"], **option}))


@pytest.mark.parametrize("scheme", ["offline", "online", "mutual"])
def test_the_student_alone_and_the_taught_one_see_the_rows_in_one_order(scheme, run, monkeypatch) -> None:
    seen: list[list[int]] = []
    epoch = Stream.epoch

    def watched(stream: Stream, number: int):
        seen.append([])
        for batch in epoch(stream, number):
            seen[-1] += batch.index.tolist()
            yield batch

    monkeypatch.setattr(Stream, "epoch", watched)
    run(scheme={"name": scheme}, **({"teacher": None} if scheme == "mutual" else {}))
    alone, taught = seen[-2:]
    assert alone == taught


def test_controls_with_smoothed_labels_and_without_the_assistant(run, tmp_path: Path) -> None:
    assistant = {"name": "hint-then-distil", "student_layer": "hidden1", "teacher_layer": "hidden1"}
    summary = run(assistant=assistant, controls=["label-smoothing", "direct"])
    assert list(summary["stages"]) == ["teacher", "alone", "label-smoothing", "direct", "hint", "distilled"]
    smoothed, alone = weights(tmp_path / "run", "label-smoothing"), weights(tmp_path / "run", "alone")
    assert not same(smoothed, alone)
    run("plain")
    assert same(weights(tmp_path / "run", "direct"), weights(tmp_path / "plain", "distilled"))
    with pytest.raises(RecipeError, match="direct compares with an assistant, and there is none"):
        recipe(controls=["direct"])


def test_label_smoothing_is_torchs_on_the_labelled_rows() -> None:
    logits, targets = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 1, -100, 3, 4, -100])
    kept = logits[targets >= 0].log_softmax(1)
    wanted = torch.full((4, 5), 0.1 / 5, dtype=torch.float64)
    wanted[range(4), targets[targets >= 0]] += 0.9
    found = kdx.losses.cross_entropy(logits, targets, label_smoothing=0.1)
    torch.testing.assert_close(found, -(wanted * kept).sum(1).mean())


def test_peers_are_a_count_or_a_list_of_models(run, tmp_path: Path) -> None:
    mutual = {"scheme": {"name": "mutual"}, "teacher": None, "controls": []}
    summary = run("count", **mutual, peers=3)
    assert list(summary["stages"]["distilled"]["students"]) == ["peer0", "peer1", "peer2"]
    run("models", **mutual, peers=[{"name": "mlp", "hidden": [5]}])
    assert weights(tmp_path / "models", "distilled", "peer1")["hidden1.0.weight"].shape[0] == 5
    with pytest.raises(RecipeError, match="scheme 'offline' has no peers"):
        recipe(peers=2)


def test_several_teachers_are_trained_each_as_its_section_says(run, tmp_path: Path) -> None:
    small = {"model": {"name": "mlp", "hidden": [6]}, "train": {"epochs": 2, "batch_size": 128}}
    changes = {"scheme": {"name": "dense-guidance", "drop": 0}, "teachers": {"small": small}}
    stages = run(**changes)["stages"]
    assert list(stages) == ["teacher", "small", "alone", "distilled"]
    assert stages["distilled"]["teachers"] == ["teacher", "small"]
    assert stages["small"]["steps"] == 2 * stages["teacher"]["steps"]
    assert weights(tmp_path / "run", "small")["hidden1.0.weight"].shape[0] == 6
    rows = [json.loads(line) for line in (tmp_path / "run" / "distilled" / "metrics.jsonl").read_text().splitlines()]
    assert {"term/teacher/kd", "term/small/kd", "term/task"} <= rows[0].keys()
    assert len(list((tmp_path / ".teachers").iterdir())) == 2
    again = run("again", **changes, teacher=None)["stages"]  # the second one alone
    assert "reused" in again["small"]
    for change, message in (
        ({"scheme": {"name": "offline"}}, "scheme 'offline' takes no more than one teacher"),
        ({"teachers": {"alone": small}}, "the name 'alone' is taken"),
        ({"teachers": {}, "teacher": None}, "scheme 'dense-guidance' needs teachers"),
        ({"teachers": {"a": {**small, "model": {"name": "mpl"}}}}, r"teachers\.a\.model\.name: .*did you mean 'mlp'"),
    ):
        with pytest.raises(RecipeError, match=message):
            recipe(**{**changes, **change})


def test_a_teacher_of_a_name_that_is_no_folder_is_refused() -> None:
    small = {"model": {"name": "mlp"}}
    with pytest.raises(PlanError, match=r"stage name '\.\./x' must consist of"):
        plan(recipe(scheme={"name": "dense-guidance"}, teachers={"../x": small}))


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_that_comes_with_kdx_has_a_plan(name: str) -> None:
    stages = plan(load_recipe(name))
    assert stages[-1].name == "distilled"
    assert len({stage.name for stage in stages}) == len(stages)


def test_a_student_starts_from_given_weights(run, tmp_path: Path) -> None:
    run("one")
    given = {**TINY["student"], "weights": str(tmp_path / "one" / "alone" / "student.safetensors")}
    run("two", student=given, controls=["untrained"])
    assert same(weights(tmp_path / "one", "alone"), weights(tmp_path / "two", "untrained"))


def test_every_error_is_one_of_kdx() -> None:
    assert issubclass(PlanError, KdxError)
