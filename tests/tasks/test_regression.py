"""Quantities: errors, likelihood, and metrics with missing targets."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kdx.tasks import Regression

NAN = float("nan")


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ({}, F.mse_loss),
        ({"loss": "l1"}, F.l1_loss),
        ({"loss": "huber", "delta": 0.3}, lambda z, y: F.huber_loss(z, y, delta=0.3)),
    ],
)
def test_the_loss_is_torchs_over_the_known_targets(options: dict, reference) -> None:
    z, y = torch.randn(5, 3, dtype=torch.float64, requires_grad=True), torch.randn(5, 3, dtype=torch.float64)
    y[0, 1] = y[3] = NAN
    known = ~y.isnan()
    task = Regression(**options)
    loss = task(z, y)
    torch.testing.assert_close(loss, reference(z[known], y[known]))
    assert task.count(y) == 11
    (gradient,) = torch.autograd.grad(loss, z)
    assert gradient[~known].eq(0).all()
    assert gradient.isfinite().all()


def test_the_gaussian_loss_is_torchs() -> None:
    z, y = torch.randn(5, 4, dtype=torch.float64, requires_grad=True), torch.randn(5, 2, dtype=torch.float64)
    y[2, 1] = NAN
    known = ~y.isnan()
    wanted = F.gaussian_nll_loss(z[:, :2][known], y[known], z[:, 2:].exp()[known])
    loss = Regression(loss="gaussian")(z, y)
    torch.testing.assert_close(loss, wanted)
    assert torch.autograd.grad(loss, z)[0].isfinite().all()
    assert Regression(loss="gaussian").outputs(2) == 4


def test_a_column_and_a_row_are_not_broadcast() -> None:
    z, y = torch.randn(4, 1, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    torch.testing.assert_close(Regression()(z, y), F.mse_loss(z[:, 0], y))
    torch.testing.assert_close(Regression()(z[:, 0], y[:, None]), F.mse_loss(z[:, 0], y))
    both = torch.cat([z, z], 1)
    torch.testing.assert_close(Regression(loss="gaussian")(both, y), F.gaussian_nll_loss(z[:, 0], y, z[:, 0].exp()))
    with pytest.raises(ValueError, match=r"shape of the values, \[4, 3\], which broadcasting would hide, got \[4, 1\]"):
        Regression()(torch.zeros(4, 3), torch.zeros(4, 1))


def test_metrics_leave_missing_targets_out() -> None:
    z = torch.tensor([[1.0, 0.0], [2.0, 0.5], [4.0, 2.0], [0.0, 9.0]])
    y = torch.tensor([[1.5, 0.0], [2.0, 1.0], [3.0, 3.0], [1.0, NAN]])
    made = Regression().metrics(z)
    for rows in (slice(0, 1), slice(1, 4)):
        for metric in made.values():
            metric.update(z[rows], y[rows])
    errors = torch.tensor([0.5, 0.0, 1.0, 1.0, 0.0, 0.5, 1.0])
    assert made["rmse"].compute().item() == pytest.approx(errors.square().mean().sqrt().item())
    assert made["mae"].compute().item() == pytest.approx(errors.mean().item())
    first = 1 - 2.25 / (y[:, 0] - y[:, 0].mean()).square().sum().item()
    second = 1 - 1.25 / (y[:3, 1] - y[:3, 1].mean()).square().sum().item()
    assert made["r2"].compute().item() == pytest.approx((first + second) / 2)
    assert (made["rmse"].higher_is_better, made["r2"].higher_is_better) == (False, True)
    for metric in made.values():
        metric.reset()
    made["r2"].update(y[:3], y[:3])
    assert made["r2"].compute() == 1


@pytest.mark.parametrize(
    ("task", "outputs", "targets", "error", "message"),
    [
        (Regression(), (2, 1), torch.tensor([1, -100]), TypeError, "got torch.int64; give targets.float"),
        (Regression(), (2, 1), torch.tensor([1.0, float("inf")]), ValueError, "finite targets"),
        (Regression(), (3, 1), torch.zeros(2), ValueError, r"shape of the values, \[3, 1\], .* got \[2\]"),
        (Regression(loss="gaussian"), (2, 3), torch.zeros(2), ValueError, r"needs outputs \[N, 2 K\]"),
    ],
)
def test_what_does_not_belong_together_is_one_sentence(task, outputs, targets, error, message) -> None:
    with pytest.raises(error, match=message):
        task.check(torch.zeros(outputs), targets)


@pytest.mark.parametrize(
    ("options", "message"), [({"loss": "rmse"}, "loss must be one of"), ({"delta": 0}, "delta must be > 0")]
)
def test_options_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Regression(**options)
