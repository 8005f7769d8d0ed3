"""The history of a run: losses and metrics of every epoch, and the text that stands for the run."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kdx
from kdx.batch import Batch
from kdx.errors import Interrupted
from kdx.hookspecs import hookimpl
from kdx.losses import Losses
from kdx.observers.metrics_log import read_metrics
from kdx.training.epoch_losses import EpochLosses
from kdx.training.run import Run
from tests.stopping import Stop

STILL = {"name": "SGD", "lr": 1e-30, "momentum": 0.0}  # moves nothing, so that the loss of all data is known


def distil(seed: int = 0) -> kdx.Offline:
    torch.manual_seed(seed)
    return kdx.Offline(
        nn.Linear(5, 3), nn.Linear(5, 3), task=(0.3, nn.CrossEntropyLoss()), knowledge={"kd": (0.7, kdx.SoftTargets())}
    )


def rows(count: int = 21) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    targets = torch.randint(3, (count,), generator=generator)
    targets[::4] = -100  # the task is a mean over the labelled rows, knowledge over all
    return torch.randn(count, 5, generator=generator), targets


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_epoch_has_the_losses_of_all_its_rows_as_one_batch(accumulate) -> None:
    scheme, data = distil(), rows()
    batches = list(DataLoader(TensorDataset(*data), 4))  # the last is short
    run = kdx.fit(scheme, batches, epochs=2, optimizer=STILL, accumulate=accumulate, device="cpu")
    whole = scheme.double()(Batch(data[0].double(), data[1]))
    assert [(row["epoch"], row["step"]) for row in run.history] == [(1, run.step // 2), (2, run.step)]
    for row in run.history:
        assert row.keys() == {"epoch", "step", "train/loss", "train/task", "train/kd"}
        assert row["train/loss"] == pytest.approx(whole.total.item(), rel=1e-6)
        for name, term in whole.terms.items():
            assert row[f"train/{name}"] == pytest.approx(term.item(), rel=1e-6)


def test_an_epoch_without_a_label_has_no_task_loss() -> None:
    inputs, targets = rows()
    data = [(inputs, torch.full_like(targets, -100))]
    row = kdx.fit(distil(), data, device="cpu").history[0]
    assert row["train/task"] == 0.0
    assert row["train/loss"] == row["train/kd"] > 0


def test_counts_beyond_the_whole_numbers_of_float32_are_kept() -> None:
    epoch, large = EpochLosses(), 2**24
    for value, count in ((1.0, torch.tensor(large)), (1.0, torch.tensor(1)), (3.0, torch.tensor(1))):
        epoch.add(Losses.of({"task": (torch.tensor(value), count)}))
    assert epoch.row()["train/task"] == (large + 4) / (large + 2)
    assert epoch.row() == {"train/loss": 0}


def test_no_step_waits_for_the_losses(net, loader, monkeypatch) -> None:
    """Between logged steps nothing reads a number from the device."""
    read: list[str] = []
    for name in ("item", "tolist", "__float__", "__bool__", "__int__"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, *args, n=name, real=real: read.append(n) or real(self))
    epoch = EpochLosses()
    losses = Losses.of({"task": (torch.tensor(1.0), torch.tensor(3)), "kd": torch.tensor(2.0)}, rows=4)
    for _ in range(3):
        epoch.add(losses)
    assert read == []
    epoch.row()
    assert read


def test_a_resumed_run_has_the_history_of_an_unbroken_one_to_the_bit(tmp_path) -> None:
    def fit(folder: str, **options) -> Run:
        scheme = distil()
        data = DataLoader(TensorDataset(*rows()), 4, shuffle=True)
        return kdx.fit(scheme, data, epochs=3, evaluate=data, folder=tmp_path / folder, seed=0, device="cpu", **options)

    whole = fit("whole")
    with pytest.raises(Interrupted):
        fit("broken", observers=[Stop(3)])
    assert fit("broken", resume=True).history == whole.history
    logs = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "broken")]
    assert logs[0] == logs[1]
    ends = [row for row in logs[0] if "train/loss" in row]
    assert [row["epoch"] for row in ends] == [1, 2, 3]
    for row, logged in zip(whole.history, ends, strict=True):
        assert {f"train/{name}": row[f"train/{name}"] for name in ("loss", "task", "kd")}.items() <= logged.items()
        assert logged["eval/student/accuracy"] == row["student/accuracy"]


def test_a_kill_before_the_checkpoint_of_an_epoch_writes_its_row_once(tmp_path) -> None:
    """The checkpoint of the epoch's last step is there, that of its end is not; the log has the epoch's row already."""

    class Killed(BaseException):
        pass

    class Kill:
        @hookimpl
        def kdx_epoch_end(self, run) -> None:
            if run.epoch == 1:
                raise Killed

    def fit(**options) -> Run:
        options |= {"epochs": 2, "folder": tmp_path, "seed": 0, "checkpoint_every": 1, "device": "cpu"}
        return kdx.fit(distil(), DataLoader(TensorDataset(*rows()), 4), **options)

    with pytest.raises(Killed):
        fit(observers=[Kill()])
    assert len([row for row in read_metrics(tmp_path / "metrics.jsonl") if "train/loss" in row]) == 1
    fit(resume=True)
    assert [row["epoch"] for row in read_metrics(tmp_path / "metrics.jsonl") if "train/loss" in row] == [1, 2]


def test_the_text_of_a_run_is_short_and_shows_no_model(net, loader, tmp_path) -> None:
    run = kdx.fit(
        kdx.Supervised(net()), loader, epochs=2, evaluate=loader, select="accuracy", folder=tmp_path, device="cpu"
    )
    text, last = repr(run), run.history[-1]
    assert len(text) < 240 + len(str(tmp_path))
    assert "\n" not in text
    assert text.startswith("<Run of Supervised: 2 of 2 epochs, 12 of 12 steps, ")
    assert (
        f"train/loss {last['train/loss']:.4g}, student/accuracy {last['student/accuracy']:.4g}; best in epoch" in text
    )
    assert text.endswith(f"in {tmp_path}>")
    assert repr(Run(run.scheme, None, 3, 9, 50)) == "<Run of Supervised: 0 of 3 epochs, 0 of 9 steps, 0.0 s>"
