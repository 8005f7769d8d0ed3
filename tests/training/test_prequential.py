"""Test, then train: what the models say about a batch before they learn from it."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kdx
from kdx.errors import Interrupted
from kdx.hookspecs import hookimpl
from kdx.training.prequential import Prequential

STEPS, ROWS = 6, 4


def unseen() -> tuple[torch.Tensor, torch.Tensor]:
    """24 samples that have nothing in common; label 0 is what an untrained zero model says, and none has it."""
    return torch.eye(STEPS * ROWS), torch.arange(STEPS * ROWS) % 2 + 1


def memory() -> nn.Linear:
    """A model that knows a sample perfectly once it was trained on it, and says class 0 before."""
    model = nn.Linear(STEPS * ROWS, 3, bias=False)
    nn.init.zeros_(model.weight)
    return model


def fit(model: nn.Module, loader, **options) -> kdx.training.loop.Run:
    sgd = {"name": "SGD", "lr": 10.0}
    options = {"optimizer": sgd, "schedule": None, "device": "cpu", "prequential": True, "log_every": 1} | options
    return kdx.fit(kdx.Supervised(model), loader, **options)


def accuracies(run, key: str = "prequential/student") -> list[float]:
    return [row[key] for row in run.prequential]


def test_a_model_that_memorises_knows_nothing_of_a_batch_when_it_is_tested_and_all_of_it_when_it_comes_again() -> None:
    run = fit(memory(), DataLoader(TensorDataset(*unseen()), ROWS), epochs=2)
    assert accuracies(run) == [0.0] * STEPS + [1.0] * STEPS
    assert accuracies(run, "prequential/student/so_far")[-1] == 0.5


def test_windows_reach_from_one_logged_step_to_the_next_and_accumulated_batches_are_all_tested_first(tmp_path) -> None:
    loader = DataLoader(TensorDataset(*unseen()), ROWS)
    run = fit(memory(), loader, epochs=2, accumulate=2, log_every=2, folder=tmp_path)
    assert accuracies(run) == [0.0, 0.5, 1.0]  # steps 2, 4, 6 of two batches each
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in logged if "loss" in row]
    assert [(row["step"], row["prequential/student"]) for row in rows] == [(2, 0.0), (4, 0.5), (6, 1.0)]
    assert all("loss" in row for row in rows)


def test_testing_changes_no_weight_no_buffer_and_no_random_state(net, loader) -> None:
    def weights(prequential: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = net()  # with BatchNorm and dropout
        fit(model, loader, epochs=2, optimizer="AdamW", prequential=prequential)
        return list(model.state_dict().values())

    assert all(a.equal(b) for a, b in zip(weights(True), weights(False), strict=True))


class Stop:
    """Stops the run as a signal would."""

    @hookimpl
    def kdx_step_end(self, run, step, losses) -> None:
        if step == 7:
            import signal

            signal.raise_signal(signal.SIGTERM)


def test_a_resumed_run_logs_the_same_numbers_as_an_unbroken_one(tmp_path) -> None:
    def run(name: str, **options):
        loader = DataLoader(TensorDataset(*unseen()), ROWS, shuffle=True)
        torch.manual_seed(0)
        return fit(memory(), loader, epochs=2, log_every=5, folder=tmp_path / name, **options)

    whole = run("whole")
    with pytest.raises(Interrupted):
        run("part", observers=[Stop()])
    part = run("part", resume=True)
    assert (part.history, part.prequential) == (whole.history, whole.prequential)
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "part")]
    assert logs[0] == logs[1]


def test_every_student_is_tested_rows_without_label_do_not_count_and_other_tasks_are_an_error() -> None:
    models = [memory() for _ in range(2)]
    nn.init.constant_(models[1].weight[1], 1.0)
    tests = Prequential(kdx.Mutual(models))
    inputs, targets = unseen()
    targets[:12] = -100
    tests.test([kdx.Batch(inputs, targets)])
    row = tests.row()
    assert row == dict.fromkeys(("prequential/peer0", "prequential/peer0/so_far"), 0.0) | dict.fromkeys(
        ("prequential/peer1", "prequential/peer1/so_far"), 0.5
    )
    with pytest.raises(ValueError, match=r"needs class numbers as targets, int64 \[N\], got NoneType"):
        tests.test([kdx.Batch(inputs)])
