"""Metrics, task and the selected key are tried on one batch before training, and fail by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import R2Score
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

import kdx
from kdx.errors import ComponentError, KdxError

BATCHES = [(torch.randn(8, 4), torch.arange(8) % 3) for _ in range(3)]


def fit(evaluate=BATCHES, **options):
    model = nn.Linear(4, 3)
    trained = model.weight.clone()
    try:
        return kdx.fit(kdx.Supervised(model), BATCHES, evaluate=evaluate, device="cpu", **options)
    except Exception:
        assert model.weight.equal(trained), "the run had begun"
        raise


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (
            lambda _: {"top": MulticlassAccuracy(7)},
            r"metric 'top', for outputs \[8, 3\] and targets \[8\], \(Mult.* of torchm",
        ),
        (
            lambda _: {"matrix": MulticlassConfusionMatrix(3)},
            r"metric 'matrix' .*expected one number.*\[3, 3\]; average",
        ),
        (
            lambda logits: {"wrong": logits.nonsense},
            r"the metrics \(<lambda> of .*test_tryout_evaluation.*AttributeError",
        ),
    ],
    ids=["update", "compute", "make"],
)
def test_a_metric_that_fails_is_named_before_the_first_step(metrics, message) -> None:
    with pytest.raises(ComponentError, match=message):
        fit(metrics=metrics)


def test_a_select_that_is_no_metric_is_named_before_the_first_step() -> None:
    with pytest.raises(ValueError, match=r"select='acuracy' is no metric of the evaluation; did you mean 'accuracy'\?"):
        fit(select="acuracy")
    with pytest.raises(ValueError, match="empty loader"):
        fit(evaluate=[])


def test_targets_that_do_not_fit_are_named_before_the_first_step() -> None:
    with pytest.raises(KdxError, match=r"metric 'accuracy', for outputs \[8, 3\] and targets \[8, 1\]"):
        fit(evaluate=[(inputs, targets[:, None]) for inputs, targets in BATCHES])


def test_a_metric_that_needs_more_rows_than_the_first_batch_has_is_no_fault() -> None:
    rows = [(torch.randn(1, 4), torch.randn(1)) for _ in range(4)]
    scheme = kdx.Supervised(nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), task=nn.functional.mse_loss)
    run = kdx.fit(scheme, rows, evaluate=rows, metrics=lambda _: {"r2": R2Score()}, device="cpu")
    assert run.history[0].keys() >= {"student/r2"}


def test_the_try_leaves_loaders_metrics_and_iterators_as_they_are() -> None:
    data = TensorDataset(torch.randn(24, 4), torch.arange(24) % 3)
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    seen = []

    class Counting(MulticlassAccuracy):
        def update(self, *args):
            super().update(*args)
            if self is kept:
                seen.append(generator.get_state())

    kept = Counting(3)
    loader = DataLoader(data, 24, shuffle=True, generator=generator)
    fit(loader, metrics=lambda _: {"accuracy": kept})
    used = torch.Generator()
    used.set_state(before)
    next(iter(DataLoader(data, 24, shuffle=True, generator=used)))
    assert len(seen) == 1
    assert seen[0].equal(used.get_state())
    assert len(fit(iter(BATCHES)).history) == 1  # runs once, and is left for the evaluation
