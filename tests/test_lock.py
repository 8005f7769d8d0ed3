"""One writer at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from tempfile import gettempdir

import pytest

from kdx.errors import Interrupted, InUseError
from kdx.lock import sole_writer, taking_turns

NOBODY = 65534
HOLD = """
import sys, time
from pathlib import Path
from kdx.lock import sole_writer
{before}
with sole_writer(Path(sys.argv[1])):
    {inside}
    print("in", flush=True)
    time.sleep(60)
"""
LOADING = """
    from torch.utils.data import DataLoader, Dataset
    class Slow(Dataset):
        def __len__(self):
            return 4
        def __getitem__(self, row):
            if row >= 2:
                time.sleep(60)
            return row
    rows = iter(DataLoader(Slow(), batch_size=1, num_workers=2))
    next(rows)
"""


@contextlib.contextmanager
def holder(folder: Path, inside: str = "pass", before: str = "") -> Iterator[subprocess.Popen]:
    """A process that is in the folder."""
    code = HOLD.format(before=before, inside=inside.strip("\n "))
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "in\n"
            yield process
        finally:
            process.kill()


def test_a_second_writer_is_told_host_process_and_time_of_the_first(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as first:
        told = rf"run is being written by process {first.pid} on {socket.gethostname()} since 20..-..-.. ..:..:.. UTC; "
        with pytest.raises(InUseError, match=told + "wait until that has ended, or take another"), writing(tmp_path):
            pass
    assert (tmp_path / "run" / ".lock").exists()
    with writing(tmp_path):  # what the killed one left is no obstacle
        pass


def writing(folder: Path):
    return sole_writer(folder / "run")


def test_a_thread_of_the_same_process_is_a_second_writer_too(tmp_path: Path) -> None:
    found: list[str] = []

    def second() -> None:
        try:
            with writing(tmp_path):
                found.append("in")
        except InUseError:
            found.append("refused")

    with writing(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    second()
    assert found == ["refused", "in"]


@pytest.mark.parametrize(
    "inside",
    [
        pytest.param("import os; os.fork() or time.sleep(60)", id="fork"),
        pytest.param(LOADING, id="loader workers", marks=pytest.mark.slow),
    ],
)
def test_the_lock_of_a_killed_process_ends_with_it_and_not_with_its_children(inside: str, tmp_path: Path) -> None:
    with holder(tmp_path / "run", inside) as first:
        children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
        assert children
        try:
            first.kill()
            first.wait()
            assert all(Path(f"/proc/{child}/status").exists() for child in children)
            while any(holds(child, tmp_path) for child in children):  # one that has just been forked has yet to let go
                time.sleep(0.01)
            with writing(tmp_path):
                pass
        finally:
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(child), signal.SIGKILL)


def holds(process: str, folder: Path) -> bool:
    """Whether a process has the file of the lock open."""
    for file in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has just been closed
            if os.readlink(file) == str(folder / "run" / ".lock"):
                return True
    return False


def test_a_forked_process_that_leaves_the_block_does_not_give_the_lock_away(tmp_path: Path) -> None:
    leaving = """
    import os
    if (child := os.fork()) == 0:
        sys.exit(0)  # through the block, whose end it runs
    os.waitpid(child, 0)
"""
    with holder(tmp_path / "run", leaving), pytest.raises(InUseError, match="process"), writing(tmp_path):
        pass


def test_at_the_end_neither_the_lock_file_is_left_nor_a_folder_that_stayed_empty(tmp_path: Path) -> None:
    with sole_writer(tmp_path / "runs" / "one"):
        pass
    assert list(tmp_path.iterdir()) == []
    with sole_writer(tmp_path / "runs" / "one"):
        (tmp_path / "runs" / "one" / "file").touch()
    assert [path.name for path in (tmp_path / "runs" / "one").iterdir()] == ["file"]


def test_whoever_opened_the_file_before_its_holder_removed_it_takes_the_new_one(tmp_path: Path, monkeypatch) -> None:
    plain, first = fcntl.flock, sole_writer(tmp_path)
    first.__enter__()

    def late(descriptor: int, how: int) -> None:
        monkeypatch.undo()
        first.__exit__(None, None, None)  # between opening and locking
        plain(descriptor, how)

    monkeypatch.setattr("fcntl.flock", late)
    with sole_writer(tmp_path), pytest.raises(InUseError), sole_writer(tmp_path):
        pass


def test_a_file_that_says_nothing_or_names_a_dead_process_is_no_reason_to_blame_it(tmp_path: Path) -> None:
    with sole_writer(tmp_path):
        dead = {"host": socket.gethostname(), "process": 4194305, "since": "2026-01-01T00:00:00+00:00"}
        for text in ("", "[]", "{", json.dumps(dead)):
            (tmp_path / ".lock").write_text(text)
            with pytest.raises(InUseError, match="written by another process; wait"), sole_writer(tmp_path):
                pass
        (tmp_path / ".lock").write_text(json.dumps(dead | {"host": "far"}))
        with pytest.raises(InUseError, match="process 4194305 on far since 2026-01-01 00:00:00"), sole_writer(tmp_path):
            pass


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said(code: int, tmp_path: Path, monkeypatch) -> None:
    def none(descriptor: int, how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", none)
    with pytest.warns(UserWarning, match=r"has no locks \(.*\), so a second process .* is not kept out") as told:  # noqa: SIM117
        with sole_writer(tmp_path):
            pass
    assert told[0].filename == __file__


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="lock"), sole_writer(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be two users")
def test_another_users_lock_file_that_cannot_be_written_is_enough(tmp_path: Path) -> None:
    for each in takewhile(lambda folder: folder != Path(gettempdir()), tmp_path.parents):
        each.chmod(0o755)
    tmp_path.chmod(0o777)
    (tmp_path / ".lock").touch()
    (tmp_path / ".lock").chmod(0o644)
    with (
        holder(tmp_path, before=f"import os; os.setuid({NOBODY})"),
        pytest.raises(InUseError, match="another process"),
        sole_writer(tmp_path),
    ):
        pass


def test_turns_wait_for_each_other_and_say_for_whom(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("kdx.lock.REMIND", 0.3)
    told: list[str] = []
    with holder(tmp_path) as first:
        threading.Timer(0.8, first.kill).start()
        start = time.monotonic()
        with taking_turns(tmp_path / ".lock", told.append, "the same teacher"):
            assert 0.5 < time.monotonic() - start < 5
    assert told[0].startswith(f"waiting for the same teacher, on which process {first.pid} on ")
    assert told[1:]
    assert all(" min so far)" in each for each in told[1:])


@pytest.fixture
def heard() -> Iterator[None]:
    """SIGINT as Python handles it; the workers of a parallel test run ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_ctrl_c_while_waiting_ends_it_in_one_sentence(tmp_path: Path) -> None:
    with holder(tmp_path):
        threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(Interrupted, match="stopped by SIGINT while waiting for it; nothing was lost") as stop:  # noqa: SIM117
            with taking_turns(tmp_path / ".lock", lambda _: None, "it"):
                pass
    assert stop.value.signum == signal.SIGINT
