"""Stopping early: when, on which metric, and the same after resuming."""

from __future__ import annotations

import pytest
import torch

import kdx
from kdx.errors import PluginError
from kdx.observers.early_stopping import EarlyStopping
from kdx.training.run import Run


def run_with(net, values: list[float], observer: EarlyStopping) -> Run:
    """A run whose history grew by these accuracies until it was stopped."""
    run = Run(kdx.Supervised(net()), None, 10, 100, 50)
    run.higher_is_better = {"student/accuracy": True, "student/error": False}
    for epoch, value in enumerate(values, start=1):
        run.history.append({"epoch": epoch, "step": epoch, "student/accuracy": value, "student/error": value})
        observer.kdx_epoch_end(run)
        if run.stopped:
            break
    return run


@pytest.mark.parametrize(
    ("values", "options", "stops_after"),
    [
        ([0.1, 0.2, 0.2, 0.2, 0.9], {"patience": 2}, 4),
        ([0.1, 0.2, 0.2, 0.3, 0.2, 0.2], {"patience": 2}, 6),
        ([0.9, 0.5, 0.4, 0.45, 0.5], {"patience": 2, "metric": kdx.Lowest("accuracy")}, 5),
        ([0.9, 0.5, 0.6, 0.7], {"patience": 2, "metric": "error"}, 4),
        ([0.10, 0.11, 0.12, 0.13], {"patience": 2, "min_delta": 0.05}, 3),
        ([0.1, float("nan"), float("nan")], {"patience": 2}, 3),
        ([float("nan"), 0.1, 0.2, 0.3], {"patience": 2}, None),
        ([0.1, 0.2, 0.3], {"patience": 1}, None),
    ],
)
def test_it_stops_after_so_many_evaluations_without_improvement(net, values, options, stops_after) -> None:
    run = run_with(net, values, EarlyStopping(**options))
    assert (len(run.history) if run.stopped else None) == stops_after


def test_rows_of_prequential_tests_between_the_evaluations_do_not_count(net, loader) -> None:
    run = kdx.fit(
        kdx.Supervised(net()),
        loader,
        epochs=4,
        evaluate=loader,
        optimizer={"name": "SGD", "lr": 1e-30},
        observers=[EarlyStopping(patience=9)],
        prequential=True,
        log_every=1,
    )
    assert run.epoch == 4


def test_a_resumed_run_stops_where_an_unbroken_one_does(net, loader, tmp_path) -> None:
    still = {"name": "SGD", "lr": 1e-30, "momentum": 0.0}

    def fit(name: str, **options) -> Run:
        torch.manual_seed(0)
        scheme = kdx.Supervised(net())
        for module in scheme.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.0  # so that every evaluation is the same
        return kdx.fit(
            scheme, loader, epochs=9, evaluate=loader, optimizer=still, folder=tmp_path / name, device="cpu", **options
        )

    unbroken = fit("a", observers=[EarlyStopping(patience=3)])
    assert unbroken.epoch == 4
    assert unbroken.stopped == "student/accuracy has not improved for 3 epochs"
    again = fit("a", observers=[EarlyStopping(patience=3)], resume=True)
    assert (again.epoch, again.step, again.stopped) == (unbroken.epoch, unbroken.step, unbroken.stopped)


def test_a_metric_without_a_direction_is_asked_about(net) -> None:
    observer = EarlyStopping("psnr")
    run = Run(kdx.Supervised(net()), None, 10, 100, 50)
    run.history.append({"epoch": 1, "step": 1, "student/psnr": 1.0})
    with pytest.raises(ValueError, match=r"'psnr' does not say .* kdx.Highest\('psnr'\) or kdx.Lowest\('psnr'\)"):
        observer.kdx_epoch_end(run)
    EarlyStopping(kdx.Highest("psnr")).kdx_epoch_end(run)
    assert run.stopped is None


def test_a_metric_that_there_is_not_and_wrong_options_are_named(net, loader) -> None:
    with pytest.raises(
        PluginError, match=r"observer 'EarlyStopping.*no 'student/acuracy'; did you mean 'student/accuracy'"
    ):
        kdx.fit(kdx.Supervised(net()), loader, evaluate=loader, observers=[EarlyStopping("acuracy")], device="cpu")
    with pytest.raises(ValueError, match="patience must be an integer >= 1, got 0"):
        EarlyStopping(patience=0)
    with pytest.raises(ValueError, match="min_delta must be >= 0"):
        EarlyStopping(min_delta=-1)


def test_a_training_loss_can_be_watched_without_an_evaluation(net, loader) -> None:
    still = {"name": "SGD", "lr": 1e-30, "momentum": 0.0}
    plain = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    run = kdx.fit(
        kdx.Supervised(plain), loader, epochs=9, optimizer=still, observers=[EarlyStopping("train/loss", patience=2)]
    )
    assert run.epoch < 9
    assert run.stopped == "train/loss has not improved for 2 epochs"


@pytest.mark.parametrize(
    ("observer", "evaluates", "error"),
    [
        (
            EarlyStopping(),
            False,
            r"'student/accuracy' is measured by an evaluation .* give kdx.fit evaluate=, or watch",
        ),
        (EarlyStopping("acuracy"), True, "the run has no 'student/acuracy'; did you mean 'student/accuracy'"),
    ],
)
def test_a_metric_that_the_run_will_not_have_is_refused_before_the_first_step(
    net, loader, tmp_path, observer, evaluates, error
) -> None:
    scheme = kdx.Supervised(net())
    before = {name: value.clone() for name, value in scheme.state_dict().items()}
    options = {"evaluate": loader} if evaluates else {}
    with pytest.raises(PluginError, match=error):
        kdx.fit(scheme, loader, observers=[observer], folder=tmp_path, device="cpu", **options)
    assert all(torch.equal(value, before[name]) for name, value in scheme.state_dict().items())
    kdx.fit(scheme, loader, folder=tmp_path, device="cpu")  # nothing was kept that would have to be resumed
