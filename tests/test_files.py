"""Files written as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import kdx
from kdx.files import atomic_write, write_json
from kdx.training.checkpoint import save_checkpoint
from tests.experiment.tiny import recipe


@pytest.fixture
def umask():
    """Sets the umask until the test is over."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize(
    ("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o002, 0o664, 0o775), (0o077, 0o600, 0o700)]
)
def test_all_that_a_run_writes_has_the_mode_that_the_umask_says(
    mask: int, file: int, folder: int, umask, tmp_path: Path
) -> None:
    umask(mask)
    kdx.run(recipe(teacher={"model": {"name": "mlp"}, "store": {"views": 1}}), folder=tmp_path / "runs" / "one")
    found = {path: path.stat().st_mode & 0o777 for path in (tmp_path / "runs").rglob("*")}
    names = {path.name for path in found}
    assert {"student.safetensors", "shard-00000.safetensors", "recipe.yaml", "report.html", ".teachers"} <= names
    wrong = {str(path): oct(mode) for path, mode in found.items() if mode != (folder if path.is_dir() else file)}
    assert not wrong


def test_a_file_that_is_replaced_gets_the_mode_of_the_umask_too(umask, tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    write_json(path, {})
    path.chmod(0o600)
    write_json(path, {"a": 1})
    save_checkpoint(tmp_path, 1, {})
    assert {each.stat().st_mode & 0o777 for each in tmp_path.iterdir()} == {0o644}


def test_a_temporary_file_of_a_killed_process_of_the_same_id_is_no_obstacle_and_a_link_there_is_not_followed(
    tmp_path: Path,
) -> None:
    path, precious = tmp_path / "one.json", tmp_path / "precious"
    precious.write_text("mine")
    temporary = tmp_path / f".one.json.{os.getpid()}.tmp"
    temporary.symlink_to(precious)
    write_json(path, {"a": 1})
    assert precious.read_text() == "mine"
    temporary.write_text("half of a fi")
    atomic_write(path, lambda place: place.write_text("whole"))
    assert path.read_text() == "whole"
    assert not temporary.exists()
