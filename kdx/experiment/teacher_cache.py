"""Teachers trained once: kept under the hash of everything that made them, and reused by other runs."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import default_collate

from kdx import __version__
from kdx.datasets.view import View
from kdx.errors import CheckpointError, DamagedError
from kdx.experiment.data import ExperimentData
from kdx.experiment.plan import train_of
from kdx.experiment.recipe import Recipe
from kdx.ref import Ref
from kdx.registry import Plugins
from kdx.stage import Stage
from kdx.training.checkpoint import export_weights, load_weights

__all__ = ["Entry", "TeacherCache"]

FORMAT = 1
MANIFEST, WEIGHTS = "manifest.json", "student.safetensors"
SAMPLED = 64
"""Images whose pixels go into the key; of all rows the labels and positions do."""


class TeacherCache:
    """A folder of trained teachers, one subfolder each, named by the hash of its key.

    The key is the model (of a file that its options name the content, not the path) and the file of its code, the
    shapes, the rows with their labels and a sample of their pixels, the task, the training, the seed, the number of
    threads, and the version of kdx and of this format: whatever of it changes, the teacher is trained anew. An entry
    appears whole or not at all.

    Args:
        folder: where; it need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entry(self, stage: Stage, recipe: Recipe, data: ExperimentData, plugins: Plugins) -> Entry:
        """The place of a stage's teacher, whether it is there or not."""
        assert isinstance(stage.model, Ref)  # a structure has no key before it is produced
        tasks = dict.fromkeys(type(task) for task in (data.task, *data.task.parts))
        key = {
            "format": FORMAT,
            "kdx": __version__,
            "model": _with_contents(stage.model.as_dict()),
            "code": [_code(each) for each in (plugins.load("model", stage.model.name), *tasks)],
            "shape": data.shape | data.facts,
            # which labels the student may see and how rows are fetched are nothing to the teacher
            "data": recipe.data.model_dump(mode="json", exclude={"labelled", "balanced", "workers"}),
            "rows": _fingerprint(data.all),
            "validation": _fingerprint(data.validation),
            "task": recipe.task.model_dump(mode="json", exclude={"weight"}),
            "train": train_of(stage, recipe).model_dump(mode="json"),
            "seed": recipe.seed + stage.seed,
            "threads": recipe.threads,
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

    def load(self, model: nn.Module, notify: Callable[[str], object]) -> Path | None:
        """Loads the weights into ``model`` and returns their folder; None if there are none.

        A damaged entry is reported and removed, and counts as none.
        """
        if not self.folder.exists():
            return None
        try:
            manifest = json.loads((self.folder / MANIFEST).read_text())
            if manifest["key"] != self.key:
                raise CheckpointError("its manifest is of another teacher")
            if manifest["sha256"] != _sha256(self.folder / WEIGHTS):
                raise CheckpointError("its weights are not those that were written")
            load_weights(model, self.folder / WEIGHTS)
        except (OSError, ValueError, KeyError, TypeError, CheckpointError, DamagedError) as error:
            notify(f"the kept teacher {self.folder} is damaged ({error}); it is removed and the teacher trained anew")
            shutil.rmtree(self.folder)
            return None
        return self.folder

    def save(self, model: nn.Module) -> None:
        """Keeps a trained teacher. One that another run put there meanwhile stays."""
        beside = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(beside, ignore_errors=True)
        try:
            beside.mkdir(parents=True)
            export_weights(model, beside / WEIGHTS)
            manifest = {"key": self.key, "sha256": _sha256(beside / WEIGHTS)}
            (beside / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
            beside.rename(self.folder)
        except OSError:
            if not self.folder.exists():  # else another run was faster, with the same teacher by the same key
                raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _code(target: Any) -> str | None:
    """The hash of the file that defines a model, None for one that is in no file."""
    file = inspect.getsourcefile(target)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and os.path.isfile(file) else None


def _with_contents(value: Any) -> Any:
    """Options in which the hash of its content stands for the path of every file."""
    if isinstance(value, Mapping):
        return {key: _with_contents(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_contents(item) for item in value]
    if isinstance(value, str | Path) and os.path.isfile(value):  # unlike Path.is_file, false for a text that is no path
        return {"sha256": _sha256(Path(value))}
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
        digest.update(_bytes(row.inputs))
    return digest.hexdigest()


def _rows(view: View, most: int | None = None) -> list[Any]:
    step = max(1, len(view) // most) if most else 1
    return [view[position] for position in range(0, len(view), step)]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
