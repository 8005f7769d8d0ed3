"""Teachers trained once: kept under the hash of everything that made them, and reused by other runs."""

from __future__ import annotations

import copy
import errno
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from kdx import __version__
from kdx.datasets.view import View
from kdx.errors import CheckpointError, DamagedError
from kdx.experiment.data import ExperimentData
from kdx.experiment.plan import train_of
from kdx.experiment.recipe import Recipe
from kdx.experiment.teacher_code import code_behind
from kdx.files import read_json, sha256_of, write_json
from kdx.lock import taking_turns
from kdx.ref import Ref
from kdx.registry import Plugins
from kdx.stage import Stage
from kdx.training.checkpoint import export_weights
from kdx.training.ranks import processes
from kdx.training.weights import load_weights

__all__ = ["Entry", "TeacherCache"]

FORMAT = 1
MANIFEST, WEIGHTS = "manifest.json", "student.safetensors"
SAMPLED = 64
"""Images whose pixels go into the key; of all rows the labels and positions do."""
TEXT = 1 << 20
"""Bytes from which on a file is no text that names components."""


class TeacherCache:
    """A folder of trained teachers, one subfolder each, named by the hash of its key.

    The key holds what the weights depend on, to the bit: a run with a kept teacher ends as if it had trained it itself.
    Whatever of it changes, the teacher is trained anew.

    ============== ==================================================================================================
    model          its name and options; for a file that they name the content, not the path; of a structure the model
                   that it was made into, and the weights that it begins with
    code           of kdx, its kernels, the packages of the model, the data set and the task, and what they import
    data           the section of the recipe, but for the labels that a student sees and the loader's processes
    rows           their positions, every label, the pixels of 64 of them; those held out too, which select the epoch
    shape          classes and shape of the inputs, and what the data set tells the model
    task           without its weight, which is the student's
    train          optimizer, schedule, epochs, batch size, precision
    seed           of the recipe and the stage
    threads        of the CPU: sums are split among them
    processes      that train together: each has a part of the batches
    device         the GPU's name, or the instruction set of the CPU, which torch chooses its kernels by
    torch, kdx     their versions
    ============== ==================================================================================================

    Left out is what changes no weight, as the folder, observers and the student. Code that is in no file cannot be
    known: such a teacher is trained in every run.

    Args:
        folder: where; it need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entry(
        self,
        stage: Stage,
        recipe: Recipe,
        data: ExperimentData,
        plugins: Plugins,
        *,
        model: Ref,
        begins: str | None = None,
    ) -> Entry | None:
        """The place of a stage's teacher, whether it is there or not; None if its code is in no file.

        Args:
            stage: that trains it.
            recipe: the experiment.
            data: the rows as the teacher takes them.
            plugins: where components come from.
            model: what the teacher is built from; of a structure what it was made into.
            begins: hash of the weights that a structure gave it; None: they are drawn.
        """
        cpu = recipe.device == "cpu"
        parts = {
            "model": model.as_dict(),
            # which labels the student may see and how rows are fetched are nothing to the teacher
            "data": recipe.data.model_dump(mode="json", exclude={"labelled", "balanced", "workers"}),
            "task": recipe.task.model_dump(mode="json", exclude={"weight"}),
        }
        code = code_behind(" ".join([json.dumps(parts, default=str), *_texts(parts)]), plugins)
        if code is None:
            return None
        key = {
            "format": FORMAT,
            "kdx": __version__,
            "torch": torch.__version__,
            **parts,
            "model": _with_contents(parts["model"]),
            **({} if begins is None else {"begins": begins}),
            "code": code,
            "shape": data.shape | data.facts,
            "rows": _fingerprint(data.all),
            "validation": _fingerprint(data.validation),
            "train": train_of(stage, recipe).model_dump(mode="json"),
            "seed": recipe.seed + stage.seed,
            "threads": torch.get_num_threads(),
            "processes": processes(cpu=cpu),
            "device": _device(cpu=cpu),
        }
        # through JSON, so that a tuple and the list it is read back as are the same
        key = json.loads(json.dumps(key, sort_keys=True))
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
        return Entry(self.folder / digest, key)


@dataclass(frozen=True, slots=True)
class Entry:
    """The place of one teacher.

    Args:
        folder: where it is or will be.
        key: what made it, as plain values.
    """

    folder: Path
    key: dict[str, Any]

    @contextmanager
    def found(self, model: nn.Module, notify: Callable[[str], object]) -> Iterator[Path | None]:
        """Loads the weights into ``model`` and gives their folder, or None if the block has to train the teacher.

        While the block trains it, other runs that want the same teacher wait here, and so does this one for another.
        A teacher that cannot be read or is damaged is left as it is: a sentence says so, and it counts as none.

        Raises:
            Interrupted: Ctrl-C while it waited.
        """
        told: list[str] = []

        def once(message: str) -> None:
            if message not in told:
                told.append(message)
                notify(message)

        if self._load(model, once):
            yield self.folder
            return
        with self._turn(notify):
            # once more, for another run may have trained it until now
            yield self.folder if self._load(model, once) else None

    def save(self, model: nn.Module, notify: Callable[[str], object]) -> None:
        """Keeps a trained teacher, whole or not at all.

        A damaged one of the same user is moved aside. One that another run put there meanwhile stays, and so does what
        cannot be read or another user wrote. Whatever hinders it is told: the training has ended well without it.
        """
        beside = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.tmp")
        try:
            for left in self.folder.parent.glob(f".{self.folder.name}.*.tmp"):  # of runs that were killed
                if left.stat().st_uid == os.geteuid():
                    shutil.rmtree(left)
            beside.mkdir(parents=True)
            export_weights(model, beside / WEIGHTS)
            write_json(beside / MANIFEST, {"key": self.key, "weights": sha256_of(beside / WEIGHTS)})
            if os.path.lexists(self.folder):
                try:
                    self._read(copy.deepcopy(model))
                except (CheckpointError, DamagedError):
                    self._move_aside(notify)
                else:
                    return  # another run was faster, with the same teacher by the same key
            beside.rename(self.folder)
        except (OSError, RuntimeError) as error:
            notify(
                f"the trained teacher is not kept for other runs in {self.folder} ({error}); this run goes on with it"
            )
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def _load(self, model: nn.Module, notify: Callable[[str], object]) -> bool:
        if not os.path.lexists(self.folder):
            return False
        before = {name: value.clone() for name, value in model.state_dict().items()}
        try:
            self._read(model)
        except OSError as error:
            notify(f"the kept teacher {self.folder} cannot be read ({error}); it is left as it is and trained anew")
        except (CheckpointError, DamagedError) as error:
            model.load_state_dict(before)  # some tensors may have been loaded
            notify(f"the kept teacher {self.folder} is damaged ({error}); it is left as it is and trained anew")
        else:
            return True
        return False

    def _read(self, model: nn.Module) -> None:
        """Loads it into a model.

        Raises:
            OSError: it cannot be read, which says nothing about what is in it.
            DamagedError: something of it is missing, or it is not what was written.
            CheckpointError: its weights are not those of the model.
        """
        try:
            for name in (MANIFEST, WEIGHTS):
                (self.folder / name).lstat()
        except FileNotFoundError as error:
            raise DamagedError(f"it has no {Path(error.filename).name}") from error
        manifest = read_json(self.folder / MANIFEST, "train it anew", key=dict)
        if manifest["key"] != self.key:
            raise DamagedError(f"its {MANIFEST} is of another teacher")
        if manifest.get("weights") != sha256_of(self.folder / WEIGHTS):
            raise DamagedError("its weights are not those that were written")
        load_weights(model, self.folder / WEIGHTS, sealed=True)

    def _move_aside(self, notify: Callable[[str], object]) -> None:
        """Makes room where a damaged teacher is.

        Raises:
            PermissionError: it is another user's.
        """
        if any(path.lstat().st_uid != os.geteuid() for path in (self.folder, *self.folder.iterdir())):
            raise PermissionError(errno.EPERM, "a damaged one of another user is there", str(self.folder))
        names = (self.folder.with_name(f"{self.folder.name}.damaged-{n}") for n in itertools.count(1))
        aside = next(path for path in names if not os.path.lexists(path))
        self.folder.rename(aside)
        notify(f"the damaged teacher is now {aside}; remove it if nobody needs it")

    @contextmanager
    def _turn(self, notify: Callable[[str], object]) -> Iterator[None]:
        """Waits until no other run trains this teacher, and lets none begin."""
        with ExitStack() as turn:
            try:
                self.folder.parent.mkdir(parents=True, exist_ok=True)
                lock = self.folder.with_name(f".{self.folder.name}.lock")
                turn.enter_context(taking_turns(lock, notify, f"the same teacher in {self.folder.parent}"))
            except OSError:
                pass  # a folder that cannot be written: save says so
            yield


def _device(*, cpu: bool) -> str:
    if torch.cuda.is_available() and not cpu:
        return torch.cuda.get_device_name()
    return f"cpu {torch.backends.cpu.get_cpu_capability()}"


def _texts(value: Any) -> Iterator[str]:
    """The contents of the files that options name, as far as they are text: they may name components too."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str) and os.path.isfile(value) and os.path.getsize(value) < TEXT:
        yield Path(value).read_text(errors="ignore")


def _with_contents(value: Any) -> Any:
    """Options in which the hash of its content stands for the path of every file."""
    if isinstance(value, Mapping):
        return {key: _with_contents(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_contents(item) for item in value]
    if isinstance(value, str | Path) and os.path.isfile(value):  # unlike Path.is_file, false for a text that is no path
        return {"sha256": sha256_of(Path(value))}
    return value


def _fingerprint(view: View) -> str:
    """A hash of a view's rows, labels and some of its pixels."""
    plain = View(view.dataset, view.indices, view.targets)
    digest = hashlib.sha256(_bytes(view.indices))
    targets = view.targets
    if targets is None:
        targets = default_collate([row.targets for row in _rows(plain)])
    for each in targets.values() if isinstance(targets, Mapping) else [targets]:
        digest.update(_bytes(each))
    for row in _rows(plain, SAMPLED):
        parts = row.inputs if isinstance(row.inputs, Mapping) else {"": row.inputs}
        for part in parts.values():
            digest.update(_bytes(part))
    return digest.hexdigest()


def _rows(view: View, most: int | None = None) -> list[Any]:
    step = max(1, len(view) // most) if most else 1
    return [view[position] for position in range(0, len(view), step)]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()
