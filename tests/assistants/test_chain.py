"""TAKD and DGKD: who teaches whom, where assistants stand, what is dropped in which step."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import socket
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import kdx
from kdx.assistants.chain import DGKD, TAKD
from kdx.assistants.placement import ByAccuracy, nearest_to
from kdx.capture import Taps
from kdx.errors import Interrupted, PlanError
from kdx.experiment.experiment import Experiment
from kdx.experiment.recipe_files import check_recipe
from kdx.hookspecs import hookimpl
from kdx.observers.metrics_log import read_metrics
from kdx.ref import Ref
from kdx.schemes.dense_guidance import DenseGuidance
from kdx.schemes.weights import Balanced
from kdx.stage import Stage, in_order
from kdx.teachers import Deeper, Snapshot
from tests.ranks import on_two_ranks

pytestmark = [
    pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning"),
    pytest.mark.filterwarnings("ignore::kdx.assistants.gap.GapWarning"),
]
TEACHER, STUDENT = Ref("convnet", width=16, stages=2), Ref("convnet", width=2, stages=2)
RECIPE = {
    "threads": 1,
    "data": {"dataset": {"name": "digits"}, "validation": 1000},
    "teacher": {"model": {"name": "convnet", "width": 8, "stages": 2}, "train": {"epochs": 2, "batch_size": 64}},
    "student": {"model": {"name": "convnet", "width": 2, "stages": 2}},
    "knowledge": {"kd": {"name": "soft-targets", "temperature": 5.0}},
    "train": {"epochs": 1, "batch_size": 64},
}


def teachers(stages: list[Stage]) -> dict[str, tuple[str, ...]]:
    return {stage.name: stage.teachers for stage in stages if stage.role != "probe"}


def weights(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(folder / stage / "student.safetensors")


def test_in_a_chain_each_is_taught_by_the_one_before_alone() -> None:
    stages = TAKD(sizes=[12, 8, 4]).plan(TEACHER, STUDENT)
    assert teachers(stages) == {
        "assistant-1": ("teacher",),
        "assistant-2": ("assistant-1",),
        "assistant-3": ("assistant-2",),
        "distilled": ("assistant-3",),
    }
    assert [stage.model.options["width"] for stage in stages] == [12, 8, 4, 2]
    assert all(stage.scheme is None for stage in stages)  # the recipe's


def test_in_dense_guidance_all_larger_ones_teach() -> None:
    stages = DGKD(sizes=[12, 8]).plan(TEACHER, STUDENT)
    assert teachers(stages) == {
        "assistant-1": ("teacher",),
        "assistant-2": ("teacher", "assistant-1"),
        "distilled": ("teacher", "assistant-1", "assistant-2"),
    }
    assert all(stage.scheme == Ref("dense-guidance", drop=1, reduction="mean") for stage in stages)


def test_a_plan_is_the_same_every_time_and_fits_together() -> None:
    for assistant in (TAKD(count=2), DGKD(count=1, candidates=5), TAKD(models=[{"name": "resnet", "depth": 8}])):
        first, second = (assistant.plan(TEACHER, STUDENT) for _ in range(2))
        assert [(s.name, s.role, s.teachers, s.needs, s.train) for s in first] == [
            (s.name, s.role, s.teachers, s.needs, s.train) for s in second
        ]
        assert [stage.name for stage in in_order([Stage("teacher", "teacher", TEACHER), *first])][1:] == [
            stage.name for stage in first
        ]
        assert first[-1].model == STUDENT
    given = TAKD(models=[{"name": "resnet", "depth": 8}]).plan(TEACHER, STUDENT)
    assert given[0].model == Ref("resnet", depth=8)


def test_a_plan_builds_no_model(monkeypatch) -> None:
    def built(*_, **__):
        raise AssertionError("a model was built")

    monkeypatch.setattr(nn.Module, "__init__", built)
    TAKD(count=2).plan(TEACHER, STUDENT)
    DGKD(sizes=[8]).plan(TEACHER, STUDENT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give the assistants by models or by sizes, or let count of them be proposed; got none of these"),
        ({"sizes": [4], "count": 1}, "got sizes and count"),
        ({"count": 0}, "at least one assistant, got 0"),
        ({"sizes": []}, "at least one assistant, got 0"),
        ({"count": 5, "candidates": 2}, "5 assistants are to be chosen from 2 candidates"),
        ({"count": 1, "vary": "hidden"}, "model 'convnet' has no integer option 'hidden' to size it by"),
        ({"count": 1, "like": "parent"}, "like must be 'teacher' or 'student', got 'parent'"),
    ],
)
def test_options_that_make_no_chain_say_why(options: dict, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        TAKD(**options).plan(TEACHER, STUDENT)


def test_a_model_without_a_name_is_no_assistant() -> None:
    with pytest.raises(ValueError, match=r"models: expected \{name: \.\.\., option: value\}, got \{'width': 3\}"):
        TAKD(models=[{"width": 3}])


def test_no_size_between_teacher_and_student_is_said() -> None:
    with pytest.raises(PlanError, match="there is no width between the student's 2 and the teacher's 3"):
        TAKD(count=1).plan(Ref("convnet", width=3), STUDENT)


class Tried:
    """Finished probes with given accuracies; the parameters of a model are its width."""

    def __init__(self, accuracies: dict[str, float]) -> None:
        self.accuracies = accuracies

    def quality(self, stage: str) -> float:
        return self.accuracies[stage]

    def parameters(self, ref: Ref) -> int:
        return ref.options["width"]


def test_assistants_stand_near_the_mean_accuracy_and_not_the_mean_size() -> None:
    candidates = {f"probe-{k}": Ref("convnet", width=width) for k, width in enumerate((12, 9, 6, 3), start=1)}
    found = {"t": 0.90, "s": 0.60, "probe-1": 0.89, "probe-2": 0.88, "probe-3": 0.86, "probe-4": 0.74}

    def chosen(count: int) -> list[int]:
        return [
            ByAccuracy(candidates, "t", "s", count=count, place=place).produce(Tried(found)).model.options["width"]
            for place in range(1, count + 1)
        ]

    assert chosen(1) == [3]  # 0.75 is wanted; the mean size, 9, has 0.88
    assert chosen(2) == [6, 3]  # 0.80 and 0.70
    assert chosen(4) == [12, 9, 6, 3]


def test_noise_in_the_probes_never_turns_a_chain_round() -> None:
    assert nearest_to([0.8, 0.7], [0.7, 0.8, 0.75]) == [1, 2]  # not 1 and 0: that would go up in size
    assert nearest_to([0.5], [0.5, 0.5]) == [0]
    with pytest.raises(PlanError, match="2 places cannot be taken by 1 candidates"):
        nearest_to([1.0, 2.0], [1.0])


@pytest.fixture(scope="module")
def dgkd(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "dgkd"
    recipe = check_recipe({**RECIPE, "assistant": {"name": "dgkd", "sizes": [6, 4]}})
    Experiment(recipe, folder).run()
    return folder


def test_every_stage_is_taught_by_those_its_plan_names(dgkd: Path) -> None:
    summary = json.loads((dgkd / "summary.json").read_text())
    assert {name: stage["teachers"] for name, stage in summary["stages"].items()} == {
        "teacher": [],
        "alone": [],
        "assistant-1": ["teacher"],
        "assistant-2": ["teacher", "assistant-1"],
        "distilled": ["teacher", "assistant-1", "assistant-2"],
    }
    rows = (dgkd / "assistant-1" / "metrics.jsonl").read_text(), (dgkd / "distilled" / "metrics.jsonl").read_text()
    assert "teacher/kd" in rows[0]
    assert "assistant" not in rows[0]


def test_the_report_of_many_stages_names_each_with_its_teachers(dgkd: Path) -> None:
    page = (dgkd / "report.html").read_text()
    assert "<td>assistant-2</td><td>teacher, assistant-1</td>" in page
    assert "<td>distilled student</td><td>teacher, assistant-1, assistant-2</td>" in page


def test_the_assistants_of_a_chain_are_proposed_by_probes_and_kept(tmp_path: Path) -> None:
    recipe = check_recipe({**RECIPE, "assistant": {"name": "takd", "count": 1, "candidates": 2}})
    summary = Experiment(recipe, tmp_path / "run").run()
    stages = summary["stages"]
    assert list(stages)[2:] == ["probe-teacher", "probe-student", "probe-1", "probe-2", "assistant-1", "distilled"]
    chosen = json.loads((tmp_path / "run" / "assistant-1" / "model.json").read_text())["model"]["width"]
    by_width = {5: "probe-1", 3: "probe-2"}
    middle = sum(stages[f"probe-{end}"]["validation"]["accuracy"] for end in ("teacher", "student")) / 2
    distance = {width: abs(stages[name]["validation"]["accuracy"] - middle) for width, name in by_width.items()}
    assert distance[chosen] == min(distance.values())
    from kdx.experiment.report import stages_table

    shown = list(stages_table(summary).columns[0].cells)
    assert shown == ["teacher", "student alone", "assistant-1", "distilled student"]  # probes are on the page only


def test_resuming_dgkd_amid_its_last_stage_drops_the_same_teachers(dgkd: Path, tmp_path: Path) -> None:
    class Stop:
        @hookimpl
        def kdx_step_end(self, run, step):
            if run.folder.name == "distilled" and step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    recipe = check_recipe({**RECIPE, "assistant": {"name": "dgkd", "sizes": [6, 4]}})
    with pytest.raises(Interrupted):
        Experiment(recipe, tmp_path / "run", [Stop()]).run()
    Experiment(recipe, tmp_path / "run").run(resume=True)
    for name, value in weights(tmp_path / "run", "distilled").items():
        assert value.equal(weights(dgkd, "distilled")[name]), name


def dense(net, *, drop: int = 1, seed: int | None = 0, count: int = 3) -> DenseGuidance:
    teachers = {f"t{k}": net(classes=3) for k in range(count)}
    return DenseGuidance(net(), teachers, knowledge={"kd": kdx.SoftTargets(5.0)}, drop=drop, seed=seed)


def test_the_dropped_teacher_is_drawn_per_step_and_evenly(net) -> None:
    scheme = dense(net)
    kept = [tuple(scheme.kept(step)) for step in range(600)]
    assert all(len(set(names)) == 2 for names in kept)
    counts = Counter(name for names in kept for name in {"t0", "t1", "t2"} - set(names))
    assert all(160 <= count <= 240 for count in counts.values()), counts  # 200 expected, 11.5 is one deviation
    assert kept == [tuple(scheme.kept(step)) for step in range(600)]
    assert kept != [tuple(dense(net, seed=1).kept(step)) for step in range(600)]


def test_micro_batches_of_one_step_drop_the_same_teacher(net, batch) -> None:
    scheme = dense(net)
    for step in range(6):
        scheme.advance(step, 6)
        asked = [set(scheme(batch).terms) - {"task"} for _ in range(3)]
        assert asked == [{f"{name}/kd" for name in scheme.kept(step)}] * 3
    assert len({frozenset(scheme.kept(step)) for step in range(6)}) > 1


def test_a_dropped_teacher_does_not_run(net, batch) -> None:
    scheme, ran = dense(net), []
    for name, teacher in scheme.teachers.items():
        teacher.model.register_forward_hook(lambda *_, name=name: ran.append(name))
    scheme.advance(4, 6)
    scheme(batch)
    assert ran == scheme.kept(4)


def test_the_seed_of_the_draws_is_in_the_checkpoint(net) -> None:
    one, other = dense(net, seed=None), dense(net, seed=None)
    assert one.seed != other.seed
    other.load_state_dict(one.state_dict())
    assert [other.kept(step) for step in range(20)] == [one.kept(step) for step in range(20)]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_is_the_task_once_and_the_mean_or_sum_over_the_kept_teachers(net, batch, reduction) -> None:
    teachers = {f"t{k}": net(classes=3) for k in range(3)}
    scheme = DenseGuidance(net(), teachers, knowledge={"kd": kdx.SoftTargets(5.0)}, reduction=reduction, seed=0).eval()
    scheme.advance(0, 1)
    losses = scheme(batch)
    kd = kdx.SoftTargets(5.0)
    student = Taps(scheme.student)(batch.inputs)
    found = [kd(student, scheme.teachers[name](batch), batch) for name in scheme.kept(0)]
    wanted = torch.nn.functional.cross_entropy(student.logits, batch.targets) + getattr(torch.stack(found), reduction)()
    torch.testing.assert_close(losses.total, wanted)


def test_a_balanced_weight_and_logged_gradients_compare_every_teacher_with_the_task(net, loader, tmp_path) -> None:
    teachers = {f"t{k}": net(classes=3) for k in range(2)}
    scheme = DenseGuidance(net(), teachers, knowledge={"kd": (Balanced(0.5), kdx.SoftTargets(5.0))}, seed=0)
    kdx.fit(scheme, loader, epochs=1, folder=tmp_path, log_gradients=1, log_every=1)
    assert scheme.weight("kd") != 1.0
    rows = read_metrics(tmp_path / "metrics.jsonl")
    cosines = [value for row in rows for key, value in row.items() if re.fullmatch(r"grad/t\d/kd/cosine", key)]
    assert cosines
    assert all(math.isfinite(cosine) for cosine in cosines)


def test_a_teacher_with_nothing_to_teach_yet_says_nothing_and_one_inside_the_student_runs_no_second_pass(
    net, batch
) -> None:
    student, passes = net(), []
    teachers = {"old": Snapshot(student), "deep": Deeper(student)}
    student.register_forward_hook(lambda *_: passes.append(1))
    scheme = DenseGuidance(student, teachers, knowledge={"kd": kdx.SoftTargets(5.0)}, drop=0, seed=0)
    assert set(scheme(batch).terms) == {"task", "deep/kd"}
    scheme.epoch_start(1, 2)
    passes.clear()
    assert set(scheme(batch).terms) == {"task", "old/kd", "deep/kd"}
    assert len(passes) == 1


def test_frozen_teachers_stay_as_they_are_and_a_student_alone_learns(net, batch) -> None:
    scheme = dense(net)
    before = {name: {k: v.clone() for k, v in t.model.state_dict().items()} for name, t in scheme.teachers.items()}
    optimizer = torch.optim.SGD(scheme.parameters(), lr=0.1)
    scheme.train()
    for step in range(4):
        scheme.advance(step, 4)
        scheme(batch).total.backward()
        optimizer.step()
    for name, teacher in scheme.teachers.items():
        assert all(value.equal(before[name][key]) for key, value in teacher.model.state_dict().items())
        assert not any(parameter.grad is not None for parameter in teacher.model.parameters())
    assert {name.split(".")[0] for name, _ in scheme.named_parameters()} == {"student"}


def test_dense_guidance_keeps_one_teacher_at_least_and_names_what_is_wrong(net) -> None:
    assert dense(net, count=1).kept(0) == ["t0"]
    assert len(dense(net, drop=5).kept(0)) == 1
    assert len(dense(net, drop=0).kept(0)) == 3
    student = net()
    kd = {"kd": kdx.SoftTargets(5.0)}
    for arguments, message in (
        ({"teachers": {}, "knowledge": kd}, "at least one teacher, got none"),
        ({"teachers": {"t": net()}, "knowledge": {}}, "at least one component"),
        ({"teachers": {"t": student}, "knowledge": kd}, "the student is one of the teachers"),
        ({"teachers": {"a.b": net()}, "knowledge": kd}, r"'a\.b' is not allowed"),
        ({"teachers": {"t": net()}, "knowledge": kd, "drop": -1}, "drop must be a number of teachers"),
        ({"teachers": {"t": net()}, "knowledge": kd, "reduction": "max"}, "there is no 'max'"),
    ):
        with pytest.raises(ValueError, match=message):
            DenseGuidance(student, **arguments)


SKIPPING = """
import sys, torch, kdx
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from kdx.schemes.dense_guidance import DenseGuidance
from kdx.teachers import Snapshot

def net(width):
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))

for build in (
    lambda student, hint: DenseGuidance(student, {"a": net(6), "b": net(5)}, knowledge=hint, seed=0),
    lambda student, hint: kdx.Offline(student, Snapshot(student), knowledge=hint),
):
    torch.manual_seed(0)
    scheme = build(net(4), {"hint": kdx.Hint(student="0", teacher="0")})
    data = TensorDataset(torch.randn(16, 3), torch.randint(2, (16,)))
    kdx.fit(scheme, DataLoader(data, 4), epochs=2, device="cpu")
print([p.sum().item() for p in scheme.parameters()])
"""


@pytest.mark.slow
def test_two_ranks_agree_though_adapters_of_teachers_sit_out_some_steps() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    first, second = on_two_ranks(SKIPPING, MASTER_PORT=port, ACCELERATE_USE_CPU="true")
    assert first == second
