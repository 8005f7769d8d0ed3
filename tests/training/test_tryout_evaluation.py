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


@pytest.mark.parametrize(
    ("task", "model", "inputs", "targets", "names"),
    [
        ("segmentation", nn.Conv2d(1, 3, 1), (1, 4, 4), torch.zeros(2, 4, 4).long(), {"miou", "pixel_accuracy"}),
        ("token-classification", nn.Linear(4, 3), (5, 4), torch.zeros(2, 5).long(), {"accuracy", "f1"}),
        ("regression", nn.Linear(4, 1), (4,), torch.rand(2, 1), {"rmse", "mae", "r2"}),
        ("multi-label", nn.Linear(4, 2), (4,), torch.ones(2, 2), {"map", "f1", "exact_match"}),
    ],
)
def test_a_run_is_judged_by_the_metrics_of_its_task_unless_told_otherwise(task, model, inputs, targets, names) -> None:
    data = [(torch.randn(2, *inputs), targets)]
    run = kdx.fit(kdx.Supervised(model, task=kdx.make("task", task)), data, evaluate=data, device="cpu")
    assert {name.removeprefix("student/") for name in run.history[0] if name.startswith("student/")} == names


@pytest.mark.parametrize(
    ("loss", "targets"),
    [(nn.functional.mse_loss, torch.rand(2, 3)), (nn.CrossEntropyLoss(ignore_index=2), torch.tensor([0, 2]))],
)
def test_metrics_are_asked_for_where_the_loss_does_not_say_them(loss, targets) -> None:
    data = [(torch.randn(2, 4), targets)]
    scheme = kdx.Supervised(nn.Linear(4, 3), task=loss)
    with pytest.raises(ValueError, match="the metrics that judge it are not known; give metrics="):
        kdx.fit(scheme, data, evaluate=data, device="cpu")
    kdx.fit(scheme, data, device="cpu")


def test_cross_entropy_of_torch_is_judged_on_its_own_class_axis() -> None:
    data = [(torch.randn(2, 4, 5), torch.zeros(2, 5, dtype=torch.int64))]
    scheme = kdx.Supervised(nn.Conv1d(4, 3, 1), task=nn.functional.cross_entropy)
    run = kdx.fit(scheme, data, evaluate=data, device="cpu")
    assert 0 <= run.history[0]["student/accuracy"] <= 1
