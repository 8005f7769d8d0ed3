"""Which epoch is kept: the highest or the lowest, as the metric says."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import kdx
from kdx.tasks import Regression
from kdx.tasks.prepared import Prepared
from kdx.tasks.r_squared import RSquared
from kdx.training import evaluate


class Undirected(RSquared):
    """A metric that does not say whether more is better."""

    higher_is_better = None


def undirected(metric):
    return lambda outputs: {"psnr": Prepared(metric, lambda z, y: (z[:, 0], y))}


def regression(**options):
    """A line that is fitted well at first and badly then: the learning rate grows."""
    torch.manual_seed(0)
    x = torch.randn(64, 3)
    scheme = kdx.Supervised(torch.nn.Linear(3, 1), task=Regression())
    loader = DataLoader(TensorDataset(x, x @ torch.tensor([1.0, -2.0, 0.5])), batch_size=8)
    schedule = kdx.Ref("ExponentialLR", gamma=3.0, every="epoch")
    run = kdx.fit(
        scheme,
        loader,
        epochs=6,
        evaluate=loader,
        optimizer=kdx.Ref("SGD", lr=0.005),
        schedule=schedule,
        device="cpu",
        **{"metrics": Regression().metrics} | options,
    )
    return run, scheme, loader


@pytest.mark.parametrize("select", ["rmse", "mae", kdx.Lowest("mae"), "r2"])
def test_an_error_is_selected_where_it_is_lowest(select: str) -> None:
    run, scheme, loader = regression(select=select)
    values = [row[f"student/{select}"] for row in run.history]
    best = max(values) if select == "r2" else min(values)
    assert best not in (values[0], values[-1])
    assert run.best[f"student/{select}"] == best
    found = evaluate(scheme.student, loader, metrics=Regression().metrics)
    assert found[select] == pytest.approx(best)
    assert found.higher_is_better == {"rmse": False, "mae": False, "r2": True}


def test_a_direction_that_nobody_said_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"'psnr' does not say .* kdx.Highest\('psnr'\) or kdx.Lowest\('psnr'\)"):
        regression(select="psnr", metrics=undirected(Undirected()))
    run, *_ = regression(select=kdx.Highest("psnr"), metrics=undirected(Undirected()))
    assert run.best["student/psnr"] == max(row["student/psnr"] for row in run.history)


def test_a_first_value_that_is_not_a_number_is_not_kept() -> None:
    calls = []

    class First(Undirected):
        def compute(self):
            calls.append(1)
            return torch.tensor(float("nan")) if len(calls) == 1 else super().compute()

    run, *_ = regression(select=kdx.Highest("psnr"), metrics=undirected(First()))
    assert run.best["epoch"] > 1
