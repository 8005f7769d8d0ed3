"""Disks that are full, folders that vanish: one sentence that names the file, and nothing that was finished is lost."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import kdx
from kdx.errors import FileError, StoreError
from kdx.experiment.experiment import Experiment
from kdx.hookspecs import hookimpl
from tests.experiment.tiny import TINY, recipe, same, weights

STAGES = ("teacher", "alone", "distilled")
LONG = {"epochs": 2, "batch_size": 512}  # three steps an epoch


def given():
    """A recipe that writes every kind of file: checkpoints, weights, metrics, a store."""
    return recipe(train=LONG, teacher={**TINY["teacher"], "train": LONG, "store": {"views": 1}})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on a disk with room."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    kdx.run(given(), folder=folder)
    return folder


@pytest.fixture
def disk(tmp_path: Path):
    """``disk(KiB)`` mounts a file system of that size, or gives the mounted one another."""
    place = tmp_path / "disk"
    place.mkdir()

    def resized(size: int) -> Path:
        options = f"{'remount,' if place.is_mount() else ''}size={size}k"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("this user may not mount a file system")
        return place

    yield resized
    subprocess.run(["umount", "--lazy", place], capture_output=True, check=False)


def size_of(folder: Path) -> int:
    """KiB that the files of a folder take in pages of 4 KiB."""
    return sum(-(-path.stat().st_size // 4096) * 4 for path in folder.rglob("*") if path.is_file())


def stopped(folder: Path) -> str:
    """Runs the recipe; returns what was said when it could not go on, nothing if it ended."""
    try:
        kdx.run(given(), folder=folder)
    except (FileError, StoreError) as error:
        return str(error)
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("start", range(4))
@pytest.mark.filterwarnings("ignore::kdx.experiment.experiment.WeakTeacherWarning")
def test_a_run_on_a_disk_that_fills_up_anywhere_says_so_and_goes_on_to_the_same_end(whole: Path, disk, start) -> None:
    seen = set()
    for size in range(12 + 16 * start, size_of(whole) + 40, 64):
        folder = disk(size) / "run"
        said = stopped(folder)
        if said:
            assert re.search(rf"{folder.parent}/.*\(No space left on device\).*free some space", said)
        seen.add(said.partition(" cannot be written")[0] or "nowhere")
        disk(20_000)
        kdx.run(given(), folder=folder, resume=True)
        assert all(same(weights(whole, stage), weights(folder, stage)) for stage in STAGES), size
        assert not list(folder.rglob("*.tmp"))
        for path in disk(20_000).iterdir():
            shutil.rmtree(path)
    print(f"a disk of {12 + 16 * start}, {76 + 16 * start}, ... KiB was full at", *sorted(seen), sep="\n  ")
    assert len(seen) > 3


class At:
    """Does something after a step of a stage."""

    def __init__(self, stage: str, step: int, act) -> None:
        self.stage, self.step, self.act = stage, step, act

    @hookimpl
    def kdx_step_end(self, run, step) -> None:
        if (run.folder.name, step) == (self.stage, self.step):
            self.act(run)


@pytest.mark.parametrize("gone", ["run", "run/alone"], ids=["the run's", "a stage's"])
def test_a_folder_that_vanishes_is_named_and_not_made_anew(tmp_path: Path, gone: str) -> None:
    folder = tmp_path / "run"

    def vanish(run) -> None:
        (tmp_path / gone).rename(tmp_path / "elsewhere")

    experiment = Experiment(given(), folder, [At("alone", 2, vanish)], report=False)
    with pytest.raises(FileError, match=rf"its folder {tmp_path / 'run/alone'} is gone\); was it moved or removed"):
        experiment.run()
    assert not (tmp_path / gone).exists()


@pytest.mark.parametrize("method", ["__init__", "add_scalar", "close"])
def test_events_of_tensorboard_that_cannot_be_written_are_named_and_no_observer_is_blamed(
    tmp_path: Path, monkeypatch, method: str
) -> None:
    from torch.utils.tensorboard.writer import SummaryWriter

    def full(*_, **__) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, method, full)
    with pytest.raises(FileError, match=r"tensorboard cannot be written \(No space left on device\)") as caught:
        kdx.run(given(), folder=tmp_path / "run", report=False)
    assert "observer" not in str(caught.value)


def test_metrics_that_cannot_be_written_are_named_and_no_observer_is_blamed(tmp_path: Path, monkeypatch) -> None:
    real = Path.open

    def opened(self, mode="r", *arguments, **options):
        return real(
            Path("/dev/full") if self.name == "metrics.jsonl" and mode == "a" else self, mode, *arguments, **options
        )

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(FileError, match=r"metrics.jsonl cannot be written \(No space left on device\)") as caught:
        kdx.run(given(), folder=tmp_path / "run", report=False)
    assert "observer" not in str(caught.value)
