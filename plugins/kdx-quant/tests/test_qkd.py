"""QKD: the plan, that each phase goes on from the one before, and that the teacher learns from its student."""

import json

import pytest
import torch
from kdx_quant.co_studying import CoStudying
from kdx_quant.qkd import QKD

import kdx
from kdx import Ref
from kdx.testing import parametrize_checks, toy_model
from kdx.training import load_tensors

pytestmark = [
    pytest.mark.filterwarnings("ignore::kdx.assistants.gap.GapWarning"),  # one epoch makes no student
    pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning"),
]

RECIPE = """
data: {dataset: {name: digits}, validation: 100}
teacher: {model: {name: mlp, hidden: [24]}, train: {epochs: 2}}
student: {model: {name: derived, how: {name: quantise, to: w4a8, steps: learned, files: []}}}
knowledge: {kd: {name: soft-targets, weight: 0.9}}
train: {epochs: 1}
controls: []
"""


@parametrize_checks(QKD(self_studying={"epochs": 2}))
def test_conformance_of_the_plan(check) -> None:
    check()


@parametrize_checks(CoStudying(toy_model(), toy_model(8, seed=1), knowledge={"kd": (1.0, kdx.SoftTargets(2.0))}))
def test_conformance_of_the_scheme(check) -> None:
    check()


def test_the_teacher_follows_the_student_as_the_student_follows_it(net) -> None:
    student, teacher = net(), net(6)
    scheme = CoStudying(
        student,
        teacher,
        task=(0.5, torch.nn.functional.cross_entropy),
        knowledge={"kd": (0.3, kdx.SoftTargets(2.0))},
    )
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6) % 3
    scheme.eval()
    losses = scheme((x, y))
    with torch.no_grad():
        s, t = student(x).double(), teacher(x).double()

    def kl(of, on):
        p, q = (of / 2).log_softmax(1), (on / 2).log_softmax(1)
        return 0.3 * 4 * (p.exp() * (p - q)).sum(1).mean().item()

    assert set(losses.terms) == {"task", "kd", "teacher/task", "teacher/kd"}
    assert losses.terms["kd"].item() == pytest.approx(kl(t, s), rel=1e-5)
    assert losses.terms["teacher/kd"].item() == pytest.approx(kl(s, t), rel=1e-5)
    alone = torch.autograd.grad(
        losses.terms["teacher/kd"], [*student.parameters()], allow_unused=True, retain_graph=True
    )
    assert all(gradient is None for gradient in alone)


def test_a_scheme_in_which_the_teacher_would_learn_nothing_is_refused(net) -> None:
    hint = kdx.make("knowledge", "hint", student="conv", teacher="conv")
    with pytest.raises(ValueError, match=r"a component that compares logits is needed.*got hint"):
        CoStudying(net(), net(6), knowledge={"hint": (1.0, hint)})


def test_it_runs_in_a_recipe_and_the_last_phase_has_the_teacher_of_the_second(tmp_path) -> None:
    recipe = tmp_path / "qkd.yaml"
    recipe.write_text(RECIPE + "assistant: {name: qkd, co_studying: {epochs: 2}}\n")
    kdx.run(recipe, folder=tmp_path / "run")
    run = tmp_path / "run"
    results = {path.parent.name: json.loads(path.read_text()) for path in run.glob("*/result.json")}
    assert results["distilled"]["teachers"] == ["co-studying:teacher"]
    assert results["co-studying"]["steps"] == 2 * results["self-studying"]["steps"]
    trained, together = (
        load_tensors(run / name) for name in ("teacher/student.safetensors", "co-studying/teacher.safetensors")
    )
    moved = [float((trained[name] - together[name]).abs().max()) for name in trained]
    assert 0 < max(moved) < 1  # it went on from the trained one


def test_phases_take_keys_of_the_section_train(tmp_path) -> None:
    first, second, last = QKD(self_studying={"epochs": 3}, co_studying={"epochs": 4}, tutoring={"epochs": 5}).plan(
        Ref("mlp"), Ref("mlp")
    )
    assert (dict(first.train), dict(second.train), dict(last.train)) == ({"epochs": 3}, {"epochs": 4}, {"epochs": 5})
    assert first.rows == "labelled"
