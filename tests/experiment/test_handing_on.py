"""A stage hands on every model that its scheme trains: as teacher, as start, to ``kdx.load``."""

from __future__ import annotations

from dataclasses import replace

import pytest

import kdx
from kdx.errors import FileError, KdxError, PlanError
from kdx.experiment.experiment import Experiment
from kdx.experiment.rehearsal import rehearse
from kdx.experiment.run_files import read_result
from kdx.experiment.verify import verify_run
from kdx.ref import Ref
from kdx.stage import Produced, Stage, Structure
from tests.experiment.tiny import TINY, recipe, same, weights

pytestmark = [
    pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning"),
    pytest.mark.filterwarnings("ignore::kdx.assistants.gap.GapWarning"),
]

STUDENT = Ref("mlp", hidden=[8, 8])
STILL = {"optimizer": Ref("SGD", lr=1e-30), "schedule": None}
"""Trains no weight that float32 can tell."""

CO_STUDYING = Stage(
    "co-studying", "assistant", STUDENT, scheme=Ref("online"), start="alone", starts={"teacher": "teacher"}, train=STILL
)
TUTORING = Stage("distilled", "distilled", STUDENT, ("co-studying:teacher",), start="co-studying", train=STILL)


@pytest.fixture
def whole(run, planned, tmp_path):
    """A run of self-studying (alone), co-studying and tutoring."""
    run(assistant=planned([CO_STUDYING, TUTORING]))
    return tmp_path / "run"


def test_a_teacher_is_trained_along_from_its_weights_and_teaches_the_next_stage(whole) -> None:
    assert same(weights(whole, "co-studying", "teacher"), weights(whole, "teacher"))
    assert same(weights(whole, "co-studying"), weights(whole, "alone"))
    assert same(weights(whole, "distilled"), weights(whole, "alone"))
    results = {name: read_result(whole / name) for name in ("teacher", "co-studying", "distilled")}
    along = results["co-studying"]["models"]
    assert list(along) == ["student", "teacher"]
    assert along["teacher"] == {
        "model": TINY["teacher"]["model"],
        "weights": "co-studying/teacher.safetensors",
        "validation": results["teacher"]["validation"],
    }
    assert along["student"]["validation"] == results["co-studying"]["validation"]
    assert "models" not in results["distilled"]
    assert results["distilled"]["teachers"] == ["co-studying:teacher"]


def test_each_of_them_can_be_loaded_exported_and_verified(whole) -> None:
    teacher = kdx.load(whole, stage="co-studying:teacher")
    assert teacher.description.model == Ref("mlp", hidden=[24, 16])
    assert teacher.description.stage == "co-studying:teacher"
    assert same(teacher.model.state_dict(), weights(whole, "teacher"))
    again = kdx.load(whole / "co-studying" / "teacher.safetensors")
    assert same(again.model.state_dict(), teacher.model.state_dict())
    assert same(kdx.load(whole, stage="co-studying:student").model.state_dict(), weights(whole, "co-studying"))
    path, difference = kdx.export(whole, "safetensors", stage="co-studying:teacher")
    assert (path.name, difference) == ("teacher.safetensors", 0.0)
    for wrong in ("co-studying:teachr", "alone:teacher"):
        with pytest.raises(FileError, match=rf"stage '{wrong.partition(':')[0]}' handed on no model"):
            kdx.load(whole, stage=wrong)
    found = verify_run(whole)
    assert "co-studying/teacher.safetensors" in found.files


def test_a_resumed_run_reads_what_was_handed_on(whole) -> None:
    before = weights(whole, "distilled")
    (whole / "summary.json").unlink()
    (whole / "distilled" / "result.json").unlink()
    Experiment(recipe(assistant={"name": "given"}), whole, report=False).run(resume=True)
    assert same(before, weights(whole, "distilled"))
    damaged = whole / "co-studying" / "teacher.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    (whole / "summary.json").unlink()
    with pytest.raises(KdxError, match=r"teacher\.safetensors is damaged"):
        Experiment(recipe(assistant={"name": "given"}), whole, report=False).run(resume=True)


def test_peers_begin_with_and_are_taken_from_other_stages(run, planned, tmp_path) -> None:
    peers = Stage(
        "peers", "assistant", STUDENT, scheme=Ref("mutual"), start="alone", starts={"peer1": "alone"}, train=STILL
    )
    last = Stage("distilled", "distilled", STUDENT, ("peers:peer1",), start="peers:peer1", train=STILL)
    run(assistant=planned([peers, last]))
    folder = tmp_path / "run"
    for stage, name in (("peers", "peer0"), ("peers", "peer1"), ("distilled", "student")):
        assert same(weights(folder, stage, name), weights(folder, "alone")), (stage, name)


class Wider(Structure):
    """Looks at a model that was trained along."""

    needs = ("co-studying:teacher",)

    def produce(self, finished) -> Produced:
        (name,) = self.needs
        assert finished.ref(name) == Ref("mlp", hidden=[24, 16])
        assert finished.evaluate(finished.model(name)) == finished.result(name)["models"]["teacher"]["validation"]
        assert finished.quality(name) == finished.result(name)["models"]["teacher"]["validation"]["accuracy"]
        return Produced(finished.ref(name), finished.model(name).state_dict())


def test_a_structure_looks_at_what_was_handed_on(run, planned, tmp_path) -> None:
    run(assistant=planned([CO_STUDYING, Stage("distilled", "distilled", Wider(), ("teacher",), train=STILL)]))
    assert same(weights(tmp_path / "run", "distilled"), weights(tmp_path / "run", "co-studying", "teacher"))


def test_a_stored_teacher_that_was_handed_on_has_a_store_of_its_own(run, planned, tmp_path) -> None:
    teacher = {**TINY["teacher"], "store": {"views": 1}}
    run(assistant=planned([CO_STUDYING, TUTORING]), teacher=teacher, controls=["alone", "direct"])
    folder = tmp_path / "run"
    assert (folder / "co-studying" / "store-teacher").is_dir()
    assert (folder / "teacher" / "store").is_dir()
    assert "co-studying/store-teacher" in verify_run(folder).files


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([replace(TUTORING, start=None)], r"names an unknown teacher 'co-studying'"),
        (
            [CO_STUDYING, replace(TUTORING, teachers=("co-studying:techer",))],
            r"stage 'co-studying' hands on no model 'techer'; did you mean 'teacher'",
        ),
        ([CO_STUDYING, replace(TUTORING, start="teacher:student")], r"cannot begin with the weights of 'teacher:stu"),
        ([CO_STUDYING, replace(TUTORING, start="teacher")], r"'student' cannot begin with the weights of 'teacher'"),
        (
            [replace(CO_STUDYING, starts={"techer": "teacher"}), TUTORING],
            r"stage 'co-studying': starts: Online trains no model 'techer'; did you mean 'teacher'",
        ),
        (
            [replace(CO_STUDYING, starts={"teacher": "alone"}), TUTORING],
            r"'teacher' cannot begin with the weights of 'alone', .* weights differ, as 'hidden1\.0\.weight'",
        ),
    ],
)
def test_wrong_names_and_structures_are_said_before_anything_runs(planned, tmp_path, stages, message) -> None:
    given = recipe(assistant=planned(stages))
    with pytest.raises(PlanError, match=message):
        rehearse(Experiment(given, tmp_path / "run").assembly)


def test_a_stage_says_once_what_its_student_begins_with() -> None:
    both = {"role": "assistant", "model": STUDENT, "starts": {"student": "alone"}}
    assert Stage("a", **both).begins_with == "alone"
    assert Stage("a", **both).needs == ("alone",)
    with pytest.raises(PlanError, match=r"start and starts\['student'\] both say"):
        Stage("a", start="b", **both)
    with pytest.raises(PlanError, match="starts: expected a mapping"):
        Stage("a", "assistant", STUDENT, starts="alone")


def test_exporting_safetensors_leaves_the_weights_of_the_run_as_they_are(whole, tmp_path) -> None:
    before = (whole / "distilled" / "student.safetensors").read_bytes()
    for _ in range(4):  # the order of the metadata in such a file is drawn by its writer
        path, difference = kdx.export(whole, "safetensors")
        assert path == whole / "distilled" / "student.safetensors"
        assert difference == 0.0
    assert path.read_bytes() == before
    assert not verify_run(whole).damaged
    other, _ = kdx.export(whole, "safetensors", tmp_path / "other.safetensors")
    assert same(kdx.load(other).model.state_dict(), weights(whole, "distilled"))
