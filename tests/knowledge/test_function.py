"""A plain function, or a loss of torch, as knowledge."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kdx
from kdx.batch import Batch
from kdx.knowledge.function import FunctionKnowledge
from kdx.losses import Over

WIDE = torch.float64


def offline(given: object, **options) -> kdx.Offline:
    torch.manual_seed(0)
    options = {"task": None, **options}
    return kdx.Offline(nn.Linear(4, 3), nn.Linear(4, 3), knowledge={"own": given}, **options).double()


def squares(student, teacher):
    return (student - teacher).square()


def outputs(scheme: kdx.Offline, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return scheme.student(inputs), scheme.teacher.model(inputs).detach()


@pytest.mark.parametrize(
    "given",
    [
        lambda student, teacher: squares(student, teacher).mean(),
        lambda student, teacher: squares(student, teacher).mean(1),
        squares,
        F.mse_loss,
        nn.MSELoss(),
        nn.MSELoss(reduction="none"),
        functools.partial(F.mse_loss, reduction="none"),
        lambda student, teacher: (squares(student, teacher).mean(), len(student)),
        kdx.knowledge.Logits(),
    ],
    ids=["scalar", "per row", "per number", "torch", "module", "module, none", "partial", "counted", "component"],
)
def test_a_mean_of_each_kind_is_the_same_term_and_the_same_step(given) -> None:
    scheme, inputs = offline((0.5, given)), torch.randn(6, 4, dtype=WIDE)
    s, t = outputs(scheme, inputs)
    expected = 0.5 * (s - t).square().mean()
    losses = scheme(Batch(inputs, None))
    assert losses.terms["own"].item() == pytest.approx(expected.item(), rel=1e-12)
    assert losses.counts["own"] == 6
    wanted = torch.autograd.grad(expected, scheme.student.weight)[0]
    assert torch.allclose(torch.autograd.grad(losses.total, scheme.student.weight)[0], wanted, rtol=1e-12)


@pytest.mark.parametrize("given", [F.mse_loss, squares, lambda s, t: squares(s, t).mean((1, 2))])
def test_micro_batches_of_unequal_length_take_the_step_of_one_batch(given) -> None:
    """Two micro-batches, 2 sequences of 5 and 3 of 2: the mean over elements (or over samples) of both together."""

    def trained(parts: list[torch.Tensor], accumulate: int) -> torch.Tensor:
        scheme = offline(given).float()
        data = [Batch(part, None) for part in parts]
        kdx.fit(scheme, data, accumulate=accumulate, optimizer=kdx.Ref("SGD", lr=1.0), schedule=None, device="cpu")
        return scheme.student.weight.detach()

    parts = [torch.randn(2, 5, 4), torch.randn(3, 2, 4)]
    scheme = offline(given).float()
    both = [outputs(scheme, part) for part in parts]
    if given in (F.mse_loss, squares):
        loss = torch.cat([squares(s, t).flatten() for s, t in both]).mean()
    else:
        loss = torch.cat([squares(s, t).mean((1, 2)) for s, t in both]).mean()
    expected = scheme.student.weight - torch.autograd.grad(loss, scheme.student.weight)[0]
    assert torch.allclose(trained(parts, 2), expected, atol=1e-6)


def test_elements_that_the_task_leaves_out_teach_nothing() -> None:
    seen = []

    def watched(student, teacher):
        seen.append(list(student.shape))
        return F.mse_loss(student, teacher)

    scheme = offline(watched, task=(1.0, kdx.make("task", "token-classification")))
    inputs, targets = torch.randn(2, 5, 4, dtype=WIDE), torch.tensor([[0, 1, 2, -100, -100], [1, -100, -100, -100, 0]])
    s, t = outputs(scheme, inputs)
    losses = scheme(Batch(inputs, targets))
    assert losses.terms["own"].item() == pytest.approx(squares(s, t)[targets >= 0].mean().item(), rel=1e-12)
    assert (seen, losses.over["own"]) == ([[5, 3]], Over.LABELLED)
    nothing = scheme(Batch(inputs, torch.full_like(targets, -100)))
    assert nothing.terms["own"].item() == 0.0


def test_a_module_with_weights_of_its_own_is_trained_along() -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, student, teacher):
            return F.mse_loss(student * self.scale, teacher)

    learned = Learned()
    scheme = offline(learned).float()
    kdx.fit(scheme, [Batch(torch.randn(6, 4), None)], optimizer=kdx.Ref("SGD", lr=0.1), device="cpu")
    assert not torch.equal(learned.scale, torch.ones(3))


@pytest.mark.parametrize("scheme", ["mutual", "kdcl", "ema-teacher"])
def test_other_schemes_take_one_too(scheme) -> None:
    knowledge = {"own": (1.0, squares)}
    if scheme == "mutual":
        made = kdx.Mutual([nn.Linear(4, 3), nn.Linear(4, 3)], knowledge=knowledge)
    elif scheme == "ema-teacher":
        made = kdx.make("scheme", "ema-teacher", nn.Linear(4, 3), knowledge=knowledge)
    else:
        made = kdx.make("scheme", "kdcl", [nn.Linear(4, 3), nn.Linear(4, 3)], knowledge=knowledge)
    losses = made.eval()(Batch(torch.randn(6, 4), torch.arange(6) % 3))
    assert any(name.rpartition("/")[2] == "own" for name in losses.terms)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            nn.KLDivLoss(reduction="batchmean"),
            ValueError,
            r"\['own'\]: KLDivLoss expects .*take kdx.SoftTargets",
        ),
        (F.kl_div, ValueError, r"kl_div expects log-probabilities .* take kdx.SoftTargets"),
        (functools.partial(F.kl_div, reduction="batchmean"), ValueError, r"kl_div expects log-probabilities"),
        (nn.CrossEntropyLoss(), ValueError, r"CrossEntropyLoss expects class numbers .*kdx.knowledge.HardTargets\(\)"),
        (F.cross_entropy, ValueError, r"cross_entropy expects class numbers or probabilities of the teacher"),
        (nn.BCEWithLogitsLoss(), ValueError, r"BCEWithLogitsLoss expects probabilities, .*SigmoidTargets\(\)"),
        (nn.CosineEmbeddingLoss(), ValueError, r"CosineEmbeddingLoss compares outputs with labels, not with outputs"),
        (nn.MultiMarginLoss(), ValueError, r"MultiMarginLoss compares outputs with labels"),
        (nn.MSELoss(reduction="sum"), ValueError, r"MSELoss has reduction='sum', and a loss is a mean"),
        (functools.partial(F.l1_loss, reduction="sum"), ValueError, r"l1_loss has reduction='sum'"),
        (lambda student: 0, TypeError, r"<lambda> is called with two arguments.*write a kdx.Knowledge"),
        (nn.Linear(2, 2), TypeError, r"Linear is called with two arguments, the outputs of student and teacher"),
        (kdx.SoftTargets, TypeError, r"got the class SoftTargets; give an object, SoftTargets\(...\)"),
        ("soft-targets", TypeError, r"a name becomes one with kdx.make\('knowledge', 'soft-targets'\)"),
        (3.0, TypeError, r"expected a kdx.Knowledge, a function of \(student, teacher\) outputs, .*got float"),
    ],
)
def test_what_compares_no_outputs_is_refused_with_what_to_take(given, error, message) -> None:
    with pytest.raises(error, match=message):
        offline(given)


@pytest.mark.parametrize("shape", [(5,), (6, 2), (3, 6)])
def test_a_tensor_of_another_shape_is_refused(shape) -> None:
    scheme = offline(lambda student, teacher: student.sum() * torch.zeros(shape))
    with pytest.raises(ValueError, match=rf"<lambda> gave .* shape \[{shape[0]}.*for outputs of shape \[6, 3\]"):
        scheme(Batch(torch.randn(6, 4, dtype=WIDE), None))


def test_a_function_that_gives_no_tensor_or_no_gradient_is_named_before_the_first_step() -> None:
    batches = [Batch(torch.randn(6, 4), None)]
    with pytest.raises(TypeError, match=r"knowledge 'own' \(FunctionKnowledge\): expected one number.*got float"):
        kdx.fit(offline(lambda s, t: F.mse_loss(s, t).item()).float(), batches, device="cpu")
    with pytest.raises(ValueError, match=r"knowledge 'own' \(FunctionKnowledge\) teaches nothing"):
        kdx.fit(offline(lambda s, t: F.mse_loss(s.detach(), t)).float(), batches, device="cpu")


def test_it_reads_other_taps_when_it_is_told() -> None:
    student = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    teacher = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    own = FunctionKnowledge(F.l1_loss, student="0", teacher="0")
    inputs = torch.randn(6, 4, dtype=WIDE)
    losses = kdx.Offline(student, teacher, task=None, knowledge={"own": own})(Batch(inputs, None))
    assert losses.total.item() == pytest.approx((student[0](inputs) - teacher[0](inputs)).abs().mean().item())
