"""Checkpoints: exact resuming, signals, what is written and what is never lost."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
import torchmetrics
from torch.utils.data import DataLoader, TensorDataset

import kdx
from kdx import rng
from kdx.errors import CheckpointError, Interrupted, KdxError, PluginError, RunExistsError
from kdx.files import atomic_write
from kdx.hookspecs import hookimpl
from kdx.observers.metrics_log import read_metrics
from kdx.training import checkpoint
from kdx.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from kdx.training.evaluation import evaluate
from kdx.training.weights import load_weights
from tests.loaders import Noisy
from tests.stopping import Stop


def distil(net, seed: int = 0) -> kdx.Offline:
    torch.manual_seed(seed)
    return kdx.Offline(net(4), net(6), knowledge={"hint": (1.0, kdx.Hint(student="conv", teacher="conv"))})


@pytest.mark.parametrize(
    ("accumulate", "stop"),
    [(1, 1), (1, 7), (1, 12), (1, 24), (4, 1), (4, 5), (4, 8)],
    ids=lambda value: f"{value}",
)
def test_a_resumed_run_ends_bitwise_where_the_unbroken_one_ends(net, images, tmp_path, stop, accumulate) -> None:
    """After the first step, inside an epoch, after an epoch's last step and after the run's."""

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
        run(tmp_path / "broken", observers=[Stop(stop)])
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


def test_a_short_last_window_belongs_to_its_epoch_when_a_run_stops_after_it(net, images, tmp_path) -> None:
    def run(folder: Path, **options):
        torch.manual_seed(0)
        loader = DataLoader(TensorDataset(*images), 16, shuffle=True)  # 6 batches: windows of 4 and of 2
        return kdx.fit(kdx.Supervised(net()), loader, epochs=2, evaluate=loader, accumulate=4, folder=folder, **options)

    whole = run(tmp_path / "unbroken")
    with pytest.raises(Interrupted):
        run(tmp_path / "broken", observers=[Stop(2)])
    rest = run(tmp_path / "broken", resume=True)
    assert (rest.step, rest.epoch, rest.history) == (whole.step, whole.epoch, whole.history)


class Killed(BaseException):
    """Ends a run as a kill does: nothing of kdx handles it."""


class CrossEntropy(torchmetrics.MeanMetric):
    """The mean loss over labels, which falls from epoch to epoch, so that the last one is selected."""

    def update(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        super().update(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))


class DiesInEvaluation(list):
    """Batches; iterating over them ends the run the n-th time."""

    def __init__(self, batches, passes: int) -> None:
        super().__init__(batches)
        self.left = passes

    def __iter__(self):
        self.left -= 1
        if self.left == 0:
            raise Killed
        return super().__iter__()


class StopsAndIsStopped(Stop):
    """Asks the run to end, in the step in which the signal comes."""

    @hookimpl
    def kdx_step_end(self, run, step) -> None:
        super().kdx_step_end(step)
        if step == self.step:
            run.stop("enough")


@pytest.mark.parametrize("length", [{"epochs": 3}, {"steps": 15}, {"epochs": 3, "steps": 15}], ids=str)
def test_a_run_killed_between_its_last_step_and_its_last_evaluation_evaluates_and_selects(
    net, images, tmp_path, length
) -> None:
    def run(folder: Path, evaluation, **options):
        torch.manual_seed(0)
        student, loader = net(), DataLoader(TensorDataset(*images), 16, shuffle=True)
        steps = len(loader) * 3 if "steps" not in length else 15
        options |= length | {"checkpoint_every": steps, "folder": folder, "optimizer": "SGD", "seed": 1}
        options |= {"evaluate": evaluation, "metrics": lambda _: {"loss": CrossEntropy()}, "select": kdx.Lowest("loss")}
        return student, kdx.fit(kdx.Supervised(student), loader, **options)

    batches = list(DataLoader(TensorDataset(*images), 16))
    unbroken, whole = run(tmp_path / "unbroken", batches)
    with pytest.raises(Killed):
        run(tmp_path / "broken", DiesInEvaluation(batches, passes=1 + len(whole.history)))  # the first is the tryout's
    assert load_checkpoint(latest_checkpoint(tmp_path / "broken/checkpoints"))["step"] == whole.step
    resumed, rest = run(tmp_path / "broken", batches, resume=True)
    assert whole.best == whole.history[-1]
    assert (rest.history, rest.best, rest.epoch) == (whole.history, whole.best, whole.epoch)
    for name, value in unbroken.state_dict().items():
        assert resumed.state_dict()[name].equal(value), name
    again, last = run(tmp_path / "broken", batches, resume=True)  # of the finished run: nothing happens
    assert last.history == whole.history
    assert all(again.state_dict()[name].equal(value) for name, value in unbroken.state_dict().items())


def test_a_run_that_is_stopped_from_both_sides_at_once_is_evaluated_when_it_is_resumed(net, loader, tmp_path) -> None:
    def run(folder: Path, observer, **options):
        torch.manual_seed(0)
        options |= {"evaluate": list(loader), "observers": [observer], "folder": folder, "seed": 1, "epochs": 3}
        return kdx.fit(kdx.Supervised(net()), loader, **options)

    class Stops:
        @hookimpl
        def kdx_step_end(self, run, step) -> None:
            if step == 2:
                run.stop("enough")

    whole = run(tmp_path / "unbroken", Stops())
    with pytest.raises(Interrupted):
        run(tmp_path / "broken", StopsAndIsStopped(2))
    rest = run(tmp_path / "broken", Stops(), resume=True)
    assert (rest.step, rest.history, rest.stopped) == (whole.step, whole.history, "enough")
    assert len(rest.history) == 1


def test_a_signal_during_an_evaluation_stops_the_run_at_once_and_loses_nothing(net, loader, tmp_path) -> None:
    class StopsIn:
        @hookimpl
        def kdx_epoch_end(self, run) -> None:
            if run.epoch == 2:
                signal.raise_signal(signal.SIGTERM)

    def run(folder: Path, *observers, **options):
        torch.manual_seed(0)
        options |= {"evaluate": list(loader), "observers": observers, "folder": folder, "seed": 1, "epochs": 2}
        return kdx.fit(kdx.Supervised(net()), loader, **options)

    whole = run(tmp_path / "unbroken")
    with pytest.raises(Interrupted, match=f"after step {whole.step} of {whole.step}"):
        run(tmp_path / "broken", StopsIn())
    rest = run(tmp_path / "broken", resume=True)
    assert (rest.step, rest.history) == (whole.step, whole.history)
    assert read_metrics(tmp_path / "broken/metrics.jsonl") == read_metrics(tmp_path / "unbroken/metrics.jsonl")


def test_a_kill_while_the_metrics_are_cut_leaves_them_whole(net, loader, tmp_path, monkeypatch) -> None:
    def run(**options):
        return kdx.fit(kdx.Supervised(net()), loader, epochs=3, folder=tmp_path, log_every=1, **options)

    with pytest.raises(Interrupted):
        run(observers=[Stop(8)])
    file = tmp_path / "metrics.jsonl"
    with file.open("a") as opened:
        opened.write('{"step": 9, "epoch": 1, "loss": 1.0}\n{"st')  # of steps after the checkpoint
    rows = file.read_text()

    def killed(*_) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(Killed):
            run(resume=True)
    assert file.read_text() == rows
    run(resume=True)
    assert [row["step"] for row in read_metrics(file) if "loss" in row] == list(range(1, 19))


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "student.safetensors", "tensorboard", "checkpoints", "checkpoints/step-00000008.pt"]
)
def test_a_link_in_the_folder_of_a_run_is_not_followed(net, loader, tmp_path, name) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")

    def run(**options):
        return kdx.fit(kdx.Supervised(net()), loader, epochs=3, folder=tmp_path / "run", **options)

    with pytest.raises(Interrupted):
        run(observers=[Stop(8)])
    (tmp_path / "run" / name).rename(tmp_path / "moved") if (tmp_path / "run" / name).exists() else None
    (tmp_path / "run" / name).symlink_to(precious)
    with pytest.raises(RunExistsError, match=rf"{name} is a link to .*precious; kdx follows none"):
        run(resume=True)
    assert precious.read_text() == "precious"


def test_what_killed_runs_left_is_removed_when_the_run_is_resumed(net, loader, tmp_path) -> None:
    def run(**options):
        return kdx.fit(kdx.Supervised(net()), loader, epochs=2, folder=tmp_path, **options)

    with pytest.raises(Interrupted):
        run(observers=[Stop(2)])
    left = [tmp_path / "checkpoints/.step-00000006.pt.4711.tmp", tmp_path / ".student.safetensors.12.tmp"]
    others = [tmp_path / ".mine.tmp", tmp_path / "notes.4711.tmp"]
    for path in (*left, *others):
        path.write_bytes(b"half")
    run(resume=True)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)


def test_an_observer_that_cannot_start_leaves_the_place_in_the_data_as_it_was(net, images, tmp_path) -> None:
    def run(folder: Path, **options) -> kdx.Scheme:
        torch.manual_seed(0)
        scheme = kdx.Supervised(net())
        loader = DataLoader(TensorDataset(*images), 16, shuffle=True)
        kdx.fit(scheme, loader, epochs=2, seed=5, folder=folder, **options)
        return scheme

    class Broken:
        @hookimpl
        def kdx_configure(self, run) -> None:
            raise OSError("no server")

    unbroken = run(tmp_path / "unbroken")
    with pytest.raises(Interrupted):
        run(tmp_path / "broken", observers=[Stop(4)])
    with pytest.raises(PluginError, match="no server"):
        run(tmp_path / "broken", observers=[Broken()], resume=True)
    resumed = run(tmp_path / "broken", resume=True)
    for name, value in unbroken.state_dict().items():
        assert resumed.state_dict()[name].equal(value), name


def test_a_run_that_an_observer_ended_trains_no_further_when_it_is_resumed(net, loader, tmp_path) -> None:
    class Enough:
        @hookimpl
        def kdx_step_end(self, run, step) -> None:
            if step == 2:
                run.stop("enough")

    kdx.fit(kdx.Supervised(net()), loader, epochs=3, folder=tmp_path, observers=[Enough()])
    again = kdx.fit(kdx.Supervised(net()), loader, epochs=3, folder=tmp_path, resume=True)
    assert (again.step, again.stopped) == (2, "enough")


def test_ctrl_c_finishes_the_step_and_says_how_to_resume(net, loader, tmp_path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=r"stopped by SIGINT after step 3 .* resume=True goes on") as caught:
        kdx.fit(kdx.Supervised(net()), loader, epochs=2, folder=tmp_path, observers=[Stop(3, signal.SIGINT)])
    assert caught.value.signum == signal.SIGINT
    assert latest_checkpoint(tmp_path / "checkpoints").name.startswith("step-00000003-")
    assert signal.getsignal(signal.SIGINT) is before


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


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(net, loader, tmp_path) -> None:
    class Poison:
        @hookimpl
        def kdx_step_end(self, run, step):
            if step == 7:
                with torch.no_grad():
                    run.scheme.student.fc.weight.fill_(float("nan"))

    with pytest.raises(KdxError, match=r"not finite at step 8 \(task=nan\)"):
        kdx.fit(kdx.Supervised(net()), loader, epochs=2, folder=tmp_path, log_every=1, observers=[Poison()])
    kept = load_checkpoint(latest_checkpoint(tmp_path / "checkpoints"))
    assert kept["step"] == 6
    assert all(torch.isfinite(value).all() for value in kept["scheme"].values())


def test_a_folder_with_a_run_is_not_overwritten(net, loader, tmp_path) -> None:
    kdx.fit(kdx.Supervised(net()), loader, epochs=1, folder=tmp_path)
    with pytest.raises(RunExistsError, match="resume=True"):
        kdx.fit(kdx.Supervised(net()), loader, epochs=1, folder=tmp_path)


def test_resuming_something_else_is_an_error(net, loader, tmp_path, monkeypatch) -> None:
    kdx.fit(kdx.Supervised(net(4)), loader, epochs=1, folder=tmp_path)
    with pytest.raises(CheckpointError, match="another scheme or optimizer"):
        kdx.fit(kdx.Supervised(net(5)), loader, epochs=1, folder=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="of 1 epochs and 6 steps, this one has 2 and 12"):
        kdx.fit(kdx.Supervised(net(4)), loader, epochs=2, folder=tmp_path, resume=True)
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    path = save_checkpoint(tmp_path / "checkpoints", 7, {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has format 99, this kdx reads 1"):
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
    names = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000008", "step-00000012"]
