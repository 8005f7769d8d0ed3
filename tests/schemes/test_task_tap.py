"""A student with a class head and a distillation head: labels teach the one, the teacher the other, both answer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

import kdx
from kdx.capture import Taps
from kdx.errors import CaptureError
from kdx.knowledge.hard_targets import HardTargets
from kdx.models import ViT

SMALL = {"dim": 8, "depth": 1, "heads": 2, "num_classes": 3, "input_shape": (1, 8, 8)}


def teacher() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def own() -> nn.Module:
    torch.manual_seed(0)
    return ViT(**SMALL, distilled=True)


def hugging_face() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.DeiTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=3,
    )
    return transformers.DeiTForImageClassificationWithTeacher(config)


STUDENTS = {
    "vit": (own, "fc", "fc_distilled"),
    "transformers": (hugging_face, "cls_classifier", "distillation_classifier"),
}


@pytest.fixture
def batch() -> kdx.Batch:
    generator = torch.Generator().manual_seed(1)
    return kdx.Batch(torch.randn(6, 1, 8, 8, generator=generator), torch.tensor([0, 1, 2, -100, 1, 0]))


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("name", STUDENTS)
def test_labels_teach_the_class_head_the_teacher_the_other_and_the_mean_answers(name, hard, batch) -> None:
    make, label_head, teacher_head = STUDENTS[name]
    student, large = make(), teacher()
    kd = HardTargets(student=teacher_head) if hard else kdx.SoftTargets(3.0, student=teacher_head)
    scheme = kdx.Offline(student, large, task=(0.5, F.cross_entropy), knowledge={"kd": (0.5, kd)}, task_tap=label_head)
    student.eval()
    losses = scheme(batch)
    seen = Taps(student, ("logits", label_head, teacher_head))(batch.inputs)
    z, given = seen[teacher_head].double(), large(batch.inputs).double()
    wanted = (
        F.cross_entropy(z, given.argmax(1))
        if hard
        else 9 * F.kl_div((z / 3).log_softmax(1), (given / 3).softmax(1), reduction="batchmean")
    )
    torch.testing.assert_close(
        losses.terms["task"].double(), 0.5 * F.cross_entropy(seen[label_head], batch.targets).double()
    )
    torch.testing.assert_close(losses.terms["kd"].double(), 0.5 * wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(seen.logits, (seen[label_head] + seen[teacher_head]) / 2)
    torch.testing.assert_close(scheme.reader("student")(student(batch.inputs)), seen.logits)

    heads = dict(student.named_modules())
    own_loss, other = heads[label_head].weight, heads[teacher_head].weight
    task, kd_term = (
        torch.autograd.grad(losses.terms[term], [own_loss, other], allow_unused=True, retain_graph=True)
        for term in ("task", "kd")
    )
    assert task[0].abs().max() > 0
    assert task[1] is None
    assert kd_term[0] is None
    assert kd_term[1].abs().max() > 0


def test_without_it_the_labels_would_teach_both_heads(batch) -> None:
    losses = kdx.Offline(own(), teacher(), knowledge={"kd": HardTargets(student="fc_distilled")})(batch)
    both = kdx.Offline(own(), teacher(), knowledge={"kd": HardTargets(student="fc_distilled")}, task_tap="fc")(batch)
    assert losses.terms["task"] != both.terms["task"]


@pytest.mark.parametrize("name", STUDENTS)
def test_such_a_student_is_trained_and_judged_by_the_mean(name, batch) -> None:
    make, label_head, teacher_head = STUDENTS[name]
    student = make()
    kd = {"kd": (0.5, HardTargets(student=teacher_head))}
    scheme = kdx.Offline(student, teacher(), task=(0.5, F.cross_entropy), knowledge=kd, task_tap=label_head)
    run = kdx.fit(scheme, [batch] * 3, epochs=2, evaluate=[batch])
    with torch.no_grad():
        logits = scheme.reader("student")(student.eval()(batch.inputs))
    labelled = batch.targets >= 0
    accuracy = (logits.argmax(1) == batch.targets)[labelled].double().mean()
    assert run.history[-1]["student/accuracy"] == pytest.approx(accuracy.item())


def test_a_tap_that_is_none_and_a_task_with_heads_are_refused() -> None:
    with pytest.raises(CaptureError, match="'fcc' names no module of ViT; did you mean 'fc'"):
        kdx.Offline(own(), teacher(), task_tap="fcc")
    heads = kdx.tasks.Heads({"kind": kdx.tasks.Head("classification")})
    with pytest.raises(ValueError, match=r"task_tap: expected none beside the task 'heads'.* got 'fc'"):
        kdx.Offline(own(), teacher(), task=heads, task_tap="fc")


def test_several_teachers_teach_the_distillation_head_too(batch) -> None:
    scheme = kdx.make(
        "scheme",
        "multi-teacher",
        own(),
        {"a": teacher(), "b": nn.Sequential(nn.Flatten(), nn.Linear(64, 3))},
        knowledge={"kd": kdx.SoftTargets(1.0, student="fc_distilled")},
        task_tap="fc",
    )
    seen = Taps(scheme.student, ("fc",))(batch.inputs)
    torch.testing.assert_close(scheme(batch).terms["task"], F.cross_entropy(seen["fc"], batch.targets))


def test_the_two_tokens_of_vit_come_before_the_grid_and_the_plain_model_is_as_it_was(batch) -> None:
    student = own()
    seen = Taps(student, ("blocks.0",))(batch.inputs)
    layout = seen.layouts["blocks.0"]
    assert (layout.class_token, layout.grid, layout.number) == (2, (2, 2), 6)
    assert seen["blocks.0"].shape == (6, 6, 8)
    assert set(ViT(**SMALL).state_dict()) == set(student.state_dict()) - {
        "tokens",
        "fc_distilled.weight",
        "fc_distilled.bias",
    }
