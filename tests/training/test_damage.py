"""Damaged checkpoints: an older one takes the place of the newest, with a sentence, and the end is the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import kdx
from kdx.errors import DamagedError, DamageWarning, FileError, Interrupted
from kdx.observers.metrics_log import read_metrics
from kdx.training.checkpoint import load_checkpoint, save_checkpoint
from tests.stopping import Stop


def flip(path: Path) -> None:
    """Flips a bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGES = {
    "flipped": flip,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "another": lambda path: torch.save({"format": 1, "step": 8}, path),
}


@pytest.fixture
def broken(net, images, tmp_path):
    """A run that was stopped after step 11 of 12, with checkpoints of steps 8 and 11; goes on when it is called."""

    def run(folder: Path, **options) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        scheme = kdx.Supervised(net())
        loader = DataLoader(TensorDataset(*images), 16, shuffle=True)
        validation = {"evaluate": loader, "select": "accuracy", "log_every": 1, "checkpoint_every": 4}
        kdx.fit(scheme, loader, epochs=2, seed=5, folder=folder, **validation, **options)
        return scheme.state_dict()

    with pytest.raises(Interrupted):
        run(tmp_path / "broken", observers=[Stop(11)])
    run.checkpoints = sorted((tmp_path / "broken" / "checkpoints").iterdir())
    assert [path.name[:13] for path in run.checkpoints] == ["step-00000008", "step-00000011"]
    return run


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_replaced_by_the_older_one_and_the_end_is_the_same(
    broken, tmp_path, damage
) -> None:
    whole = broken(tmp_path / "whole")
    older, newest = broken.checkpoints
    DAMAGES[damage](newest)
    message = rf"{newest.name} is damaged: .*; it is removed and the run goes on from the older {older.name}, which"
    with pytest.warns(DamageWarning, match=message):
        rest = broken(tmp_path / "broken", resume=True)
    assert all(rest[name].equal(value) for name, value in whole.items())
    rows = [read_metrics(tmp_path / run / "metrics.jsonl") for run in ("whole", "broken")]
    assert rows[0] == rows[1]
    assert older.exists()  # beside that of the last step: the damaged one takes no good one's place
    assert len(list((tmp_path / "broken" / "checkpoints").iterdir())) == 2


def test_without_an_older_checkpoint_a_damaged_one_is_an_error_that_says_what_to_do(broken, tmp_path) -> None:
    for path in broken.checkpoints:
        flip(path)
    message = f"{broken.checkpoints[1].name} is damaged: .*; no other is left, remove .*checkpoints to train from the"
    with pytest.raises(DamagedError, match=message):
        broken(tmp_path / "broken", resume=True)
    with pytest.raises(DamagedError, match="is damaged: it has not the checksum that its name ends with; remove it to"):
        load_checkpoint(broken.checkpoints[0])


def test_a_checkpoint_that_cannot_be_read_is_not_taken_for_a_damaged_one(broken, tmp_path) -> None:
    newest = broken.checkpoints[1]
    newest.unlink()
    newest.mkdir()  # which no user, root included, can read as a file
    with pytest.raises(FileError, match=rf"{newest.name} cannot be read \(Is a directory\)"):
        broken(tmp_path / "broken", resume=True)


def test_a_bit_that_flips_in_a_checkpoint_is_always_found(tmp_path) -> None:
    path = save_checkpoint(tmp_path, 3, {"w": torch.randn(50)})
    assert load_checkpoint(path)["w"].shape == (50,)
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(DamagedError, match="is damaged"):
            load_checkpoint(path)


@pytest.mark.parametrize(
    "line",
    ['{"step": 3, "epo', "[1]", '{"step": 3}', '{"step": "3", "epoch": 0}', '{"step": 3, "epoch": 0, "loss": []}'],
)
def test_a_damaged_line_of_the_metrics_is_an_error_that_names_it(broken, tmp_path, line) -> None:
    file = tmp_path / "broken" / "metrics.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:2], line, *lines[3:], ""]))
    with pytest.raises(kdx.KdxError, match=r"metrics.jsonl is damaged in line 3, .*; remove that line, or the file"):
        broken(tmp_path / "broken", resume=True)
    file.write_text("\n".join([*lines[:2], *lines[3:], ""]))
    broken(tmp_path / "broken", resume=True)


def test_a_disk_that_is_full_is_said_with_the_file_and_what_is_kept(broken, tmp_path, monkeypatch) -> None:
    before = [path.read_bytes() for path in broken.checkpoints]

    class Full:
        def __init__(self, file, digest):
            self.error = OSError(28, "No space left on device")

        def write(self, data):
            return len(data)

        def flush(self):
            pass

    monkeypatch.setattr("kdx.training.checkpoint._Hashing", Full)
    with pytest.raises(
        FileError, match=r"step-00000012.pt cannot be written \(No space left on device\).*free some"
    ) as e:
        broken(tmp_path / "broken", resume=True)
    assert e.value.errno == 28
    assert [path.read_bytes() for path in broken.checkpoints] == before
    assert not list((tmp_path / "broken" / "checkpoints").glob(".*"))
