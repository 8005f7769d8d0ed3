"""One and several labels that are there or not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kdx.responses import Form
from kdx.tasks import Binary, MultiLabel

NAN = float("nan")


@pytest.mark.parametrize("pos_weight", [None, 2.5, [0.5, 1.0, 3.0]])
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_the_loss_is_the_mean_over_the_known_labels(pos_weight, dtype: torch.dtype) -> None:
    z = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randint(2, (5, 3)).to(dtype)
    known = torch.ones(5, 3, dtype=torch.bool)
    known[1, 2] = known[4] = False
    hidden = y.masked_fill(~known, -100)
    weight = None if pos_weight is None else torch.tensor(pos_weight, dtype=torch.float64)
    each = F.binary_cross_entropy_with_logits(z, y.double(), pos_weight=weight, reduction="none")
    task = MultiLabel(pos_weight=pos_weight)
    loss = task(z, hidden)
    torch.testing.assert_close(loss, each[known].mean())
    assert task.count(hidden) == 11
    assert torch.autograd.grad(loss, z)[0][~known].eq(0).all()
    if dtype.is_floating_point:
        torch.testing.assert_close(task(z, y.masked_fill(~known, NAN)), each[known].mean())


@pytest.mark.parametrize("outputs", [(4,), (4, 1)])
@pytest.mark.parametrize("targets", [(4,), (4, 1)])
def test_one_logit_may_or_may_not_have_an_axis(outputs: tuple[int, ...], targets: tuple[int, ...]) -> None:
    z, y = torch.randn(4, dtype=torch.float64), torch.tensor([1, 0, -100, 1])
    wanted = F.binary_cross_entropy_with_logits(z[[0, 1, 3]], y[[0, 1, 3]].double())
    task = Binary()
    torch.testing.assert_close(task(z.view(outputs), y.view(targets)), wanted)
    made = task.metrics(z.view(outputs))
    for metric in made.values():
        metric.update(z.view(outputs), y.view(targets))
    assert made["accuracy"].compute().item() == pytest.approx(((z > 0) == y.bool())[[0, 1, 3]].double().mean().item())


def test_outputs_are_of_sigmoids() -> None:
    assert MultiLabel().responses.form is Binary().responses.form is Form.BERNOULLI
    assert (Binary().outputs(2), Binary().outputs(1), MultiLabel().outputs(9)) == (1, 1, 9)
    with pytest.raises(ValueError, match="3 classes, not 2; take the task classification or multi-label"):
        Binary().outputs(3)


def test_metrics_leave_unknown_labels_out() -> None:
    z = torch.tensor([[2.0, -1.0], [1.0, 3.0], [-1.0, 1.0]])
    y = torch.tensor([[1.0, NAN], [0.0, 1.0], [1.0, 0.0]])
    made = MultiLabel().metrics(z)
    for metric in made.values():
        metric.update(z, y)
    # label 0 is ranked there, not, there: (1 + 2/3) / 2; label 1 there, not: 1
    assert made["map"].compute().item() == pytest.approx((5 / 6 + 1) / 2)
    assert made["exact_match"].compute().item() == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("task", "outputs", "targets", "error", "message"),
    [
        (MultiLabel(), (2, 3), torch.tensor([0, 2]), ValueError, r"outputs \[2, 3\] and targets \[2\]"),
        (MultiLabel(), (2, 1), torch.tensor([[0], [2]]), ValueError, r"got 0 \.\. 2; for class numbers take .*classif"),
        (MultiLabel(), (1, 2), torch.tensor([[0.0, -1.0]]), ValueError, r"NaN or -100 .* got -1 \.\. 0"),
        (MultiLabel(), (1, 2), torch.tensor([[True, False]]), TypeError, r"got torch.bool; give targets.float\(\)"),
        (MultiLabel(), (1, 2), torch.tensor([[1, 0]]).byte(), TypeError, r"got torch.uint8"),
        (MultiLabel(pos_weight=[1.0, 2.0, 3.0]), (1, 2), torch.ones(1, 2), ValueError, "3 numbers, .* have 2 labels"),
        (Binary(), (4, 2), torch.ones(4), ValueError, r"one logit .* got \[4, 2\]; for two logits take the task class"),
        (Binary(), (4, 1), torch.ones(3), ValueError, r"expected targets \[4\] or \[4, 1\], got \[3\]"),
    ],
)
def test_what_does_not_belong_together_is_one_sentence(task, outputs, targets, error, message) -> None:
    with pytest.raises(error, match=message):
        task.check(torch.zeros(outputs), targets)


@pytest.mark.parametrize("weight", [0, -1.0, [], [1.0, 0.0]])
def test_a_weight_that_is_not_above_0_is_refused(weight) -> None:
    with pytest.raises(ValueError, match="pos_weight must be > 0"):
        MultiLabel(pos_weight=weight)
