"""What may happen to a run from outside: lost workers, folders that cannot be written, clocks that jump, long soaks."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from contextlib import suppress
from multiprocessing.resource_sharer import DupFd
from multiprocessing.resource_sharer import stop as stop_sharing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import kdx
from kdx.blame import explaining_lost_workers
from kdx.errors import ComponentError, FileError
from kdx.observers.metrics_log import read_metrics
from kdx.training.checkpoint import latest_checkpoint, load_checkpoint
from kdx.training.evaluation import evaluate


class Fatal(Dataset):
    """Rows; one of them kills the worker process that fetches it, as long as a file is there."""

    def __init__(self, flag: Path, row: int) -> None:
        self.flag, self.row = flag, row

    def __len__(self) -> int:
        return 64

    def __getitem__(self, row: int):
        if row == self.row and self.flag.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.randn(3, generator=torch.Generator().manual_seed(row)), row % 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch's handler may raise in a __del__
@pytest.mark.parametrize("persistent", [False, True], ids=["new workers", "persistent workers"])
def test_a_killed_loader_worker_is_explained_and_the_run_goes_on_from_its_checkpoint(tmp_path, persistent) -> None:
    flag = tmp_path / "flag"
    flag.touch()

    def run(folder: Path, row: int = 63, **options):
        torch.manual_seed(0)
        student = torch.nn.Linear(3, 2)
        loader = DataLoader(Fatal(flag, row), 8, shuffle=True, num_workers=2, persistent_workers=persistent)
        options |= {"epochs": 2, "folder": folder, "checkpoint_every": 1, "seed": 3, "device": "cpu"}
        kdx.fit(kdx.Supervised(student), loader, **options)
        return student

    with pytest.raises(ComponentError, match=r"a worker process of a data loader was lost .* fewer workers"):
        run(tmp_path / "broken")
    with pytest.raises(ComponentError, match="a worker process of a data loader was lost"):
        evaluate(torch.nn.Linear(3, 2), DataLoader(Fatal(flag, 63), 8, num_workers=1))
    with suppress(RuntimeError):  # torch's handler may see the loss once more
        gc.collect()
    flag.unlink()
    resumed, unbroken = run(tmp_path / "broken", resume=True), run(tmp_path / "unbroken")
    assert resumed.weight.equal(unbroken.weight)


def test_a_lost_worker_is_explained_where_another_error_came_up_over_it(net, loader) -> None:
    class Writes:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            raise RuntimeError("unexpected pos 10694 vs 10664")  # as torch.save ends when it is interrupted

    with pytest.raises(ComponentError, match="a worker process of a data loader was lost"), explaining_lost_workers():  # noqa: SIM117
        with Writes():
            raise RuntimeError("DataLoader worker (pid 4711) is killed by signal: Killed. ")


def test_a_worker_lost_before_the_memory_of_its_batch_was_taken_is_explained() -> None:
    read, write = os.pipe()
    handed_over = DupFd(read)  # as a worker hands over the memory of a batch
    stop_sharing()  # and is gone before it was taken
    with pytest.raises(ComponentError, match="a worker process of a data loader was lost"), explaining_lost_workers():
        handed_over.detach()
    with pytest.raises(EOFError), explaining_lost_workers():
        raise EOFError  # of anything else
    os.close(read)
    os.close(write)


def test_a_clock_that_is_set_back_changes_nothing(net, loader, tmp_path, monkeypatch) -> None:
    def run(folder: Path):
        torch.manual_seed(0)
        return kdx.fit(kdx.Supervised(net()), loader, epochs=3, evaluate=loader, seed=1, folder=folder, log_every=1)

    whole = run(tmp_path / "steady")
    real, calls = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() - 3600.0 * next(calls))  # an hour back at every look
    back = run(tmp_path / "back")
    assert next(calls) > 0  # somebody did look, TensorBoard at least
    assert back.history == whole.history
    assert back.seconds >= 0
    assert read_metrics(tmp_path / "back/metrics.jsonl") == read_metrics(tmp_path / "steady/metrics.jsonl")
    assert load_checkpoint(latest_checkpoint(tmp_path / "back/checkpoints"))["step"] == whole.step


def test_a_folder_that_may_not_be_written_to_is_one_sentence(net, loader) -> None:
    def run(folder: Path):
        return kdx.fit(kdx.Supervised(net()), loader, folder=folder, device="cpu")

    with TemporaryDirectory() as made:
        place = Path(made)
        place.chmod(0o755)
        run(place / "open")  # imports all that it takes, while it may be read
        closed = place / "closed"
        closed.mkdir(mode=0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)  # who may do everything is told of nothing
        try:
            for folder in (closed, closed / "run"):
                with pytest.raises(FileError, match=r"closed.* cannot be made \(Permission denied\)"):
                    run(folder)
        finally:
            if root:
                os.seteuid(0)
        assert not list(closed.iterdir())


@pytest.mark.slow
def test_three_thousand_steps_leave_memory_files_and_threads_as_they_were(net, images, tmp_path) -> None:
    seen: list[tuple[int, int, int, int]] = []

    class Counts:
        @kdx.hookimpl
        def kdx_step_end(self, step: int) -> None:
            if step % 500 == 0:
                gc.collect()
                files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
                tensors = sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())
                resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
                seen.append((files, threads, tensors, resident))

    terms = {"kd": (0.9, kdx.SoftTargets()), "rkd": (1.0, kdx.make("knowledge", "rkd", student="pool", teacher="pool"))}
    scheme = kdx.Offline(net(4), net(6), knowledge=terms)
    data = [images] * 100
    kdx.fit(scheme, data, epochs=30, evaluate=data[:1], folder=tmp_path, log_every=10, observers=[Counts()])
    assert len(seen) == 6
    files, threads, tensors, resident = zip(*seen[1:], strict=True)
    assert len(set(files)) == 1, files
    assert len(set(threads)) == 1, threads
    assert len(set(tensors)) == 1, tensors
    assert resident[-1] - resident[0] < 2**24, resident  # a leak of one batch a step would be 60 MB
