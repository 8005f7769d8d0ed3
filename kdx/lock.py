"""One writer at a time, by a lock of the system: it ends with the process that holds it, however that ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from kdx.errors import Interrupted, InUseError
from kdx.files import named

__all__ = ["LOCK", "sole_writer", "taking_turns"]

LOCK = ".lock"
POLL, REMIND = 0.2, 60.0
"""Seconds between two tries of a process that waits, and between two sentences that say so."""
_HELD_ELSEWHERE = (errno.EAGAIN, errno.EACCES)
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EBADF)


@contextmanager
def sole_writer(folder: Path, *, name: str = LOCK) -> Iterator[None]:
    """Keeps other writers out of a folder as long as the block runs; whoever only reads takes no lock.

    The file ``.lock`` in the folder carries the lock and says who holds it. It is removed at the end; one that a killed
    process left is no obstacle. A folder that is made here and stays empty is removed too. Processes that are forked in
    the block, as the workers of a loader, do not hold the lock and so cannot outlast it.

    Args:
        folder: made if it is missing.
        name: of the file, for a second lock in the same folder.

    Raises:
        InUseError: another writer is in the folder; its host, its process and since when are named.
        FileError: the folder cannot be made or written to.

    On a file system without locks, as some network drives are, a warning says that nobody is kept out.
    """
    with named(folder, "made"):
        made = _make(folder)
    try:
        with named(folder / name, "made"):
            held = _take(folder / name)
        if held is None:
            raise InUseError(
                f"{folder} is being written by {_holder(folder / name)}; wait until that has ended, or take another "
                "folder"
            )
        try:
            yield
        finally:
            held.release()
    finally:
        with suppress(OSError):  # not empty: there is something in it to be kept
            for each in made:
                each.rmdir()


@contextmanager
def taking_turns(path: Path, told: Callable[[str], object], what: str) -> Iterator[None]:
    """Lets one process after another into the block, by the lock on a file; the others wait.

    Args:
        path: the file that carries the lock, in a folder that exists.
        told: called with a sentence once there is somebody to wait for, and again every minute.
        what: what the wait is for, as ``"the same teacher"``.

    Raises:
        Interrupted: Ctrl-C while it waited.
        OSError: the file cannot be made.
    """
    start = reminded = time.monotonic()
    waited = False
    try:
        while (held := _take(path)) is None:
            if not waited or time.monotonic() - reminded > REMIND:
                passed = f" ({(time.monotonic() - start) / 60:.0f} min so far)" if waited else ""
                told(f"waiting for {what}, on which {_holder(path)} is at work{passed}")
                waited, reminded = True, time.monotonic()
            time.sleep(POLL)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped by SIGINT while waiting for {what}; nothing was lost", signal.SIGINT) from None
    try:
        yield
    finally:
        held.release()


class _Held:
    """An open file with the lock on it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor
        _OPEN.add(self)

    def lock(self) -> bool:
        """Takes the lock; False if somebody else has it."""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD_ELSEWHERE:
                return False
            if error.errno not in _NO_LOCKS:
                raise
            warnings.warn(
                f"the file system of {self.path.parent} has no locks ({error.strerror}), so a second process that "
                "writes there at the same time is not kept out; see to it that there is none",
                stacklevel=5,
            )
        return True

    def sign(self) -> None:
        """Writes who holds the lock; the lock does not depend on it."""
        holder = {"host": socket.gethostname(), "process": os.getpid(), "since": datetime.now(UTC).isoformat()}
        with suppress(OSError):  # the disk is full, or the file is another user's
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, json.dumps(holder).encode(), 0)

    def current(self) -> bool:
        """True while the path still is this file, which another holder may have removed as it ended."""
        try:
            found = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(self.descriptor))

    def close(self) -> None:
        """Closes the file, and with it gives the lock back."""
        if self in _OPEN:
            _OPEN.remove(self)
            os.close(self.descriptor)

    def release(self) -> None:
        """Removes the file and gives the lock back; nothing in a forked process, which has no lock."""
        if self in _OPEN:
            with suppress(OSError):  # the folder was moved, or is another user's
                if self.current():
                    os.unlink(self.path)
            self.close()


_OPEN: set[_Held] = set()


def _close_in_child() -> None:
    for held in list(_OPEN):
        held.close()  # the lock is the parent's: it lasts as long as a process has the file open


os.register_at_fork(after_in_child=_close_in_child)


def _make(folder: Path) -> list[Path]:
    """Makes a folder; returns what was missing of it, innermost first."""
    missing = []
    for each in (folder, *folder.parents):
        if each.exists():
            break
        missing.append(each)
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _take(path: Path) -> _Held | None:
    """The lock on a file, which is made if it is missing; None if somebody else has it."""
    while True:
        held = _Held(path, _opened(path))
        try:
            if not held.lock():
                held.close()
                return None
            if held.current():
                held.sign()
                return held
        except BaseException:
            held.close()
            raise
        held.close()  # it was removed between opening and locking; there is a new one, or none


def _opened(path: Path) -> int:
    flags = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # not waiting for whoever opens a pipe
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
    except PermissionError as error:
        try:
            return os.open(path, os.O_RDONLY | flags)  # another user's, and a lock needs no more
        except FileNotFoundError:
            raise error from None


def _holder(path: Path) -> str:
    """Who holds the lock on a file, in words."""
    try:
        found = json.loads(path.read_text())
        host, process, since = str(found["host"]), int(found["process"]), datetime.fromisoformat(found["since"])
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
    if host == socket.gethostname() and not _alive(process):
        return "another process"  # the file is of one that was killed, and who has the lock now could not write it
    return f"process {process} on {host} since {since:%Y-%m-%d %H:%M:%S} UTC"


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True
