"""fit: accumulation, resuming, signals, observers, selection, errors."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import kdx
from kdx import rng
from kdx.batch import Batch
from kdx.checkpoint import atomic_write, latest_checkpoint, load_checkpoint, load_weights
from kdx.datasets import View
from kdx.errors import CheckpointError, Interrupted, KdxError, PluginError, RunExistsError, UnknownNameError
from kdx.evaluation import evaluate
from kdx.hookspecs import hookimpl
from kdx.observers import read_metrics
from kdx.stream import Stream, dataset_size, windows


class Noisy(Dataset):
    """Images whose augmentation draws from Python's, NumPy's and torch's global generators."""

    def __init__(self, images) -> None:
        self.inputs, self.targets = images

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i):
        noise = random.random() + np.random.rand() + torch.rand(()).item()
        return Batch(self.inputs[i] + 0.1 * noise, self.targets[i], i)


def distil(net, seed: int = 0) -> kdx.Offline:
    torch.manual_seed(seed)
    return kdx.Offline(net(4), net(6), knowledge={"hint": (1.0, kdx.Hint(student="conv", teacher="conv"))})


def weights(scheme: kdx.Scheme) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in scheme.state_dict().items()}


class StopAt:
    """Sends a signal to this process after a step."""

    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        self.step, self.number = step, number

    @hookimpl
    def kdx_step_end(self, step) -> None:
        if step == self.step:
            os.kill(os.getpid(), self.number)


def test_training_lowers_the_loss_and_returns_the_history(net, loader) -> None:
    scheme = kdx.Supervised(net())
    run = kdx.fit(scheme, loader, epochs=30, evaluate=loader, optimizer={"name": "AdamW", "lr": 0.03}, device="cpu")
    assert [row["epoch"] for row in run.history] == list(range(1, 31))
    assert run.step == run.total_steps == 180
    assert run.history[-1]["student/accuracy"] > 0.9
    assert scheme.student.training


def test_the_users_script_of_the_design_works(net, loader) -> None:
    torch.manual_seed(0)
    student, teacher = net(4), net(6)
    scheme = kdx.Offline(
        student,
        teacher,
        task=(0.1, F.cross_entropy),
        knowledge={
            "kd": (0.9, kdx.SoftTargets(temperature=4.0)),
            "hint": (1.0, kdx.make("knowledge", "hint", student="conv", teacher="conv")),
        },
    )
    kdx.fit(scheme, loader, epochs=2, evaluate=loader)
    optimizer = torch.optim.SGD(scheme.parameters(), lr=0.01)
    for batch in loader:
        losses = scheme(batch)
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.isfinite(losses.total)


@pytest.mark.parametrize("rows", [64, 56], ids=["even", "ragged"])
def test_one_batch_of_64_equals_four_of_16(net, images, rows) -> None:
    inputs, targets = (x[:rows] for x in images)
    targets = targets.clone()
    targets[3:20] = -100  # labelled rows are spread unevenly over the micro-batches

    def train(batch_size: int, accumulate: int) -> kdx.Scheme:
        scheme = distil(net)
        scheme.student.norm = scheme.teacher.model.norm = nn.Identity()
        scheme.student.drop.p = 0.0
        loader = DataLoader(TensorDataset(inputs, targets), batch_size)
        kdx.fit(scheme, loader, epochs=3, accumulate=accumulate, optimizer="SGD", clip_grad_norm=1.0, seed=1)
        return scheme

    whole, parts = train(64, 1), train(16, 4)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_gradients_are_clipped(net, loader) -> None:
    scheme = kdx.Supervised(net())
    before = weights(scheme)
    kdx.fit(scheme, loader, steps=1, optimizer={"name": "SGD", "lr": 1.0, "momentum": 0.0}, clip_grad_norm=1e-3)
    moved = sum(float((p.detach() - before[n]).square().sum()) for n, p in scheme.named_parameters()) ** 0.5
    assert 0 < moved <= 1e-3 * 1.001


def test_bf16_trains_and_leaves_the_scheme_usable(net, loader, batch) -> None:
    scheme = distil(net)
    kdx.fit(scheme, loader, epochs=1, mixed_precision="bf16")
    assert {p.dtype for p in scheme.parameters()} == {torch.float32}
    assert scheme(batch).total.dtype == torch.float32
    kdx.fit(scheme, loader, epochs=1, mixed_precision="no")


@pytest.mark.parametrize("stop", [1, 7, 12], ids=["first step", "inside an epoch", "last step of an epoch"])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_resumed_run_ends_bitwise_where_the_unbroken_one_ends(net, images, tmp_path, stop, accumulate) -> None:
    if accumulate == 4 and stop > 6:
        stop = 5

    def run(folder: Path, **options) -> tuple[kdx.Scheme, object]:
        scheme = distil(net)
        loader = DataLoader(Noisy(images), 16, shuffle=True)
        done = kdx.fit(
            scheme,
            loader,
            epochs=4,
            evaluate=loader,
            select="accuracy",
            optimizer="SGD",
            accumulate=accumulate,
            seed=5,
            folder=folder,
            log_every=1,
            **options,
        )
        return scheme, done

    unbroken, whole = run(tmp_path / "unbroken")
    with pytest.raises(Interrupted, match=f"stopped by SIGTERM after step {stop} of"):
        run(tmp_path / "broken", observers=[StopAt(stop)])
    torch.manual_seed(123)  # a new process has another random state
    resumed, rest = run(tmp_path / "broken", resume=True)
    for name, value in unbroken.state_dict().items():
        assert resumed.state_dict()[name].equal(value), name
    assert rest.history == whole.history
    assert rest.best == whole.best
    assert rng.capture()["torch"].equal(
        load_checkpoint(latest_checkpoint(tmp_path / "broken/checkpoints"))["rng"]["torch"]
    )
    assert read_metrics(tmp_path / "broken/metrics.jsonl") == read_metrics(tmp_path / "unbroken/metrics.jsonl")


def test_ctrl_c_finishes_the_step_and_says_how_to_resume(net, loader, tmp_path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=r"stopped by SIGINT after step 3 .* resume=True goes on") as caught:
        kdx.fit(kdx.Supervised(net()), loader, epochs=2, folder=tmp_path, observers=[StopAt(3, signal.SIGINT)])
    assert caught.value.signum == signal.SIGINT
    assert latest_checkpoint(tmp_path / "checkpoints").name == "step-00000003.pt"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_generator_of_the_loader_is_part_of_the_checkpoint(images) -> None:
    def loader() -> DataLoader:
        return DataLoader(TensorDataset(*images), 16, shuffle=True, generator=torch.Generator().manual_seed(3))

    whole = Stream(loader(), torch.device("cpu"))
    expected = [batch.inputs for epoch in range(2) for batch in whole.epoch(epoch)]
    part = Stream(loader(), torch.device("cpu"))
    seen = [batch.inputs for _, batch in zip(range(4), part.epoch(0), strict=False)]
    rest = Stream(loader(), torch.device("cpu"))
    rest.load_state_dict(part.state_dict())
    seen += [batch.inputs for epoch in range(2) for batch in rest.epoch(epoch)]
    assert len(seen) == len(expected)
    assert all(a.equal(b) for a, b in zip(seen, expected, strict=True))


def test_the_data_do_not_depend_on_what_training_draws(images) -> None:
    def inputs(draws: int) -> list[torch.Tensor]:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        found = []
        for batch in Stream(DataLoader(Noisy(images), 16, shuffle=True), torch.device("cpu")).epoch(0):
            torch.rand(draws)
            found.append(batch.inputs)
        return found

    assert all(a.equal(b) for a, b in zip(inputs(1), inputs(9), strict=True))


def test_the_size_of_a_data_set_counts_what_its_indices_can_name(images) -> None:
    whole = TensorDataset(*images)
    assert dataset_size(DataLoader(whole, 16)) == 96
    assert dataset_size(DataLoader(Subset(View(whole, torch.arange(9)), [1, 2]), 2)) == 96
    assert dataset_size([images]) is None
    assert dataset_size(DataLoader(type("Endless", (IterableDataset,), {"__iter__": lambda _: iter([0])})())) is None


def test_windows_group_batches_and_keep_the_rest() -> None:
    assert [len(window) for window in windows(iter(range(7)), 3)] == [3, 3, 1]


def test_the_epoch_is_told_to_samplers_and_data_sets(net, images) -> None:
    class Told(TensorDataset):
        epochs: ClassVar[list[int]] = []

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

    kdx.fit(kdx.Supervised(net()), DataLoader(Told(*images), 32), epochs=3)
    assert Told.epochs == [0, 1, 2]


def test_selection_puts_the_best_weights_back(net, loader, images, tmp_path) -> None:
    scheme = kdx.Supervised(net())
    validation = DataLoader(TensorDataset(*images), 96)
    run = kdx.fit(
        scheme,
        loader,
        epochs=6,
        evaluate=validation,
        select="accuracy",
        optimizer={"name": "SGD", "lr": 0.5},
        folder=tmp_path,
        seed=3,
    )
    best = max(row["student/accuracy"] for row in run.history)
    assert run.best["student/accuracy"] == best
    assert evaluate(scheme.student, validation)["accuracy"] == pytest.approx(best)
    exported = net()
    load_weights(exported, tmp_path / "student.safetensors")
    assert evaluate(exported, validation)["accuracy"] == pytest.approx(best)


def test_the_export_holds_the_student_alone(net, loader, batch, tmp_path) -> None:
    from safetensors.torch import load_file

    scheme = distil(net)
    kdx.fit(scheme, loader, epochs=1, folder=tmp_path)
    assert load_file(tmp_path / "student.safetensors").keys() == scheme.student.state_dict().keys()
    fresh = net()
    load_weights(fresh, tmp_path / "student.safetensors")
    assert fresh.eval()(batch.inputs).equal(scheme.student.eval()(batch.inputs))
    with pytest.raises(CheckpointError, match="do not fit Sequential"):
        load_weights(net(5), tmp_path / "student.safetensors")


def test_evaluation_restores_modes_and_random_state(net, loader, images) -> None:
    model = net().train()
    model.norm.eval()
    random_before = rng.capture()
    running = model.norm.running_mean.clone()
    found = evaluate(model, loader)
    assert 0 <= found["accuracy"] <= 1
    assert model.training
    assert model.drop.training
    assert not model.norm.training
    assert model.norm.running_mean.equal(running)
    assert rng.capture()["torch"].equal(random_before["torch"])
    inputs, targets = images
    with torch.no_grad():
        expected = (model.eval()(inputs).argmax(1) == targets).float().mean().item()
    assert found["accuracy"] == pytest.approx(expected)
    with pytest.raises(ValueError, match="empty loader"):
        evaluate(model, [])


def test_metrics_are_written_as_json_lines_and_events(net, loader, tmp_path) -> None:
    kdx.fit(distil(net), loader, epochs=2, evaluate=loader, folder=tmp_path, log_every=2)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = [row for row in rows if "loss" in row]
    assert [row["step"] for row in logged] == [2, 4, 6, 8, 10, 12]
    for row in logged:
        assert row["loss"] == pytest.approx(row["term/task"] + row["term/hint"], rel=1e-5)
    assert [row["epoch"] for row in rows if "eval/student/accuracy" in row] == [1, 2]
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_observers_are_told_in_order_and_can_stop_the_run(net, loader) -> None:
    told = []

    class Early:
        @hookimpl
        def kdx_configure(self, run):
            told.append("configure")

        @hookimpl
        def kdx_step_end(self, run, step, losses):
            told.append(f"first {step}")
            assert not losses.total.requires_grad

        @hookimpl
        def kdx_evaluated(self, run, metrics):
            told.append(f"evaluated {sorted(metrics)}")
            run.stop("enough")

        @hookimpl
        def kdx_run_end(self, run):
            told.append("end")

    class Second:
        @hookimpl
        def kdx_step_end(self, step):
            told.append(f"second {step}")

    run = kdx.fit(kdx.Supervised(net()), loader, epochs=5, evaluate=loader, observers=[Early(), Second()])
    assert run.stopped == "enough"
    assert run.epoch == 1
    assert told[:3] == ["configure", "first 1", "second 1"]
    assert told[-2:] == ["evaluated ['student/accuracy']", "end"]


def test_an_observer_that_raises_is_named_and_loses_nothing(net, loader, tmp_path) -> None:
    class Clumsy:
        @hookimpl
        def kdx_step_end(self, step):
            if step == 4:
                raise OSError("no space left on device")

    scheme = kdx.Supervised(net())
    with pytest.raises(PluginError, match=r"'Clumsy \(number 3\)' failed in kdx_step_end: OSError: no space left"):
        kdx.fit(scheme, loader, epochs=2, folder=tmp_path, observers=[Clumsy()])
    assert latest_checkpoint(tmp_path / "checkpoints").name == "step-00000004.pt"
    assert kdx.fit(scheme, loader, epochs=2, folder=tmp_path, resume=True).step == 12

    class Wrong:
        @hookimpl
        def kdx_step_end(self, colour):
            pass

    with pytest.raises(PluginError, match=r"(?s)'Wrong \(number 1\)' cannot be used.*colour"):
        kdx.fit(scheme, loader, observers=[Wrong()])


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(net, loader, tmp_path) -> None:
    class Poison:
        @hookimpl
        def kdx_step_end(self, run, step):
            if step == 7:
                with torch.no_grad():
                    run.scheme.student.fc.weight.fill_(float("nan"))

    with pytest.raises(KdxError, match=r"not finite at or before step 8 \(last terms: task=nan\)"):
        kdx.fit(kdx.Supervised(net()), loader, epochs=2, folder=tmp_path, log_every=1, observers=[Poison()])
    kept = load_checkpoint(latest_checkpoint(tmp_path / "checkpoints"))
    assert kept["step"] == 6
    assert all(torch.isfinite(value).all() for value in kept["scheme"].values())


def test_a_folder_with_a_run_is_not_overwritten(net, loader, tmp_path) -> None:
    kdx.fit(kdx.Supervised(net()), loader, epochs=1, folder=tmp_path)
    with pytest.raises(RunExistsError, match="resume=True"):
        kdx.fit(kdx.Supervised(net()), loader, epochs=1, folder=tmp_path)


def test_resuming_something_else_is_an_error(net, loader, tmp_path) -> None:
    kdx.fit(kdx.Supervised(net(4)), loader, epochs=1, folder=tmp_path)
    with pytest.raises(CheckpointError, match="another scheme or optimizer"):
        kdx.fit(kdx.Supervised(net(5)), loader, epochs=1, folder=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="of 1 epochs and 6 steps, this one has 2 and 12"):
        kdx.fit(kdx.Supervised(net(4)), loader, epochs=2, folder=tmp_path, resume=True)
    path = latest_checkpoint(tmp_path / "checkpoints")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        kdx.fit(kdx.Supervised(net(4)), loader, epochs=1, folder=tmp_path, resume=True)
    torch.save({"format": 99}, path)
    with pytest.raises(CheckpointError, match="has format 99"):
        load_checkpoint(path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        atomic_write(path, full)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_old_checkpoints_are_removed_but_two(net, loader, tmp_path) -> None:
    kdx.fit(kdx.Supervised(net()), loader, epochs=2, folder=tmp_path, checkpoint_every=4)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000008.pt", "step-00000012.pt"]


@pytest.mark.parametrize(
    ("schedule", "first", "last"),
    [
        ("CosineAnnealingLR", 0.1 * (1 + np.cos(np.pi / 12)) / 2, 0.0),
        ({"name": "MultiStepLR", "milestones": [1], "every": "epoch"}, 0.1, 0.01),
        ({"name": "StepLR", "step_size": 6}, 0.1, 0.001),
        (None, 0.1, 0.1),
    ],
)
def test_schedules_of_torch_by_name(net, loader, schedule, first, last) -> None:
    rates = []

    class Rates:
        @hookimpl
        def kdx_step_end(self, run):
            rates.append(run.learning_rate)

    kdx.fit(
        kdx.Supervised(net()),
        loader,
        epochs=2,
        optimizer={"name": "SGD", "lr": 0.1},
        schedule=schedule,
        observers=[Rates()],
    )
    assert rates[0] == pytest.approx(first)
    assert rates[-1] == pytest.approx(last, abs=1e-12)
    assert len(rates) == 12


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"optimizer": "Adamm"}, UnknownNameError, "no optimizer named 'Adamm'; did you mean 'Adam"),
        ({"optimizer": {"name": "SGD", "lrr": 1}}, TypeError, "SGD has no option 'lrr'; did you mean 'lr'"),
        ({"optimizer": {"lr": 1}}, ValueError, "expected a mapping with 'name'"),
        ({"schedule": "CosineLR"}, UnknownNameError, "no schedule named 'CosineLR'"),
        ({"schedule": {"name": "StepLR", "step_size": 1, "every": "day"}}, ValueError, "every must be 'step' or"),
        ({"epochs": 0}, ValueError, "epochs must be an integer >= 1, got 0"),
        ({"accumulate": 1.5}, ValueError, "accumulate must be an integer"),
        ({"device": "gpu"}, ValueError, "device must be 'auto' or 'cpu'"),
        ({"resume": True}, ValueError, "resume needs the folder"),
        ({"evaluate": [], "epochs": 1}, ValueError, "empty loader"),
    ],
)
def test_bad_arguments_name_what_was_expected(net, loader, options, error, message) -> None:
    with pytest.raises(error, match=message):
        kdx.fit(kdx.Supervised(net()), loader, **options)


def test_select_names_the_metrics_there_are(net, loader) -> None:
    with pytest.raises(ValueError, match=r"select='f1' is not among the metrics \['student/accuracy'\]"):
        kdx.fit(kdx.Supervised(net()), loader, evaluate=loader, select="f1")


def test_empty_and_endless_data(net, images) -> None:
    class Endless(IterableDataset):
        def __iter__(self):
            while True:
                yield images[0][0], images[1][0]

    with pytest.raises(ValueError, match="train is empty"):
        kdx.fit(kdx.Supervised(net()), [])
    with pytest.raises(ValueError, match="train has no length, so give steps="):
        kdx.fit(kdx.Supervised(net()), DataLoader(Endless(), 4))
    assert kdx.fit(kdx.Supervised(net()), DataLoader(Endless(), 4), steps=3).step == 3


def test_compile_trains_to_the_same_weights(net, images) -> None:
    def train(compile: bool) -> dict[str, torch.Tensor]:
        scheme = distil(net)
        scheme.student.drop.p = 0.0
        kdx.fit(scheme, DataLoader(TensorDataset(*images), 16), steps=3, compile=compile, optimizer="SGD")
        return weights(scheme)

    plain, compiled = train(False), train(True)
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-5, msg=name)
