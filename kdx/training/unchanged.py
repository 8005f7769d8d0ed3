"""Frozen teachers of a run, known by their fingerprints before and after it."""

from __future__ import annotations

from torch import nn

from kdx.capture import clean_name
from kdx.errors import TeacherChangedError
from kdx.schemes.apart import unchanging_teachers
from kdx.store.fingerprint import digest_of, tensor_digests
from kdx.training.run import Run

__all__ = ["UnchangedTeachers"]

_SHOWN = 5


class UnchangedTeachers:
    """The teachers of a run that must not change, as they were when this was made.

    Args:
        run: gets their fingerprints, ``run.teachers``: one hash of all parameters and buffers of each
            (:func:`kdx.store.fingerprint.tensor_digests`).
    """

    def __init__(self, run: Run) -> None:
        self.models = unchanging_teachers(run.scheme)
        self._before = {name: tensor_digests(model) for name, model in self.models.items()}
        self._marks = {name: _marks(model) for name, model in self.models.items()}
        run.teachers = {name: digest_of(digests) for name, digests in self._before.items()}

    def check_written(self) -> None:
        """Compares the tensors that were written to or replaced since this was made; costs next to nothing if none was.

        Raises:
            TeacherChangedError: one holds other values; it is named.
        """
        for name, model in self.models.items():
            marks, before = self._marks[name], self._before[name]
            written = {key for key, mark in _marks(model).items() if marks.get(key) != mark}
            if written:
                now = tensor_digests(model)
                _refuse(name, [key for key in sorted(written) if before.get(key) != now[key]])

    def check(self) -> None:
        """Compares the teachers with what they were.

        Raises:
            TeacherChangedError: one has changed; its tensors are named.
        """
        for name, model in self.models.items():
            before, now = self._before[name], tensor_digests(model)
            _refuse(name, [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)])


def _refuse(name: str, changed: list[str]) -> None:
    if changed:
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise TeacherChangedError(
            f"the frozen teacher {name!r} changed during training: {', '.join(map(repr, changed[:_SHOWN]))}{more} are "
            "not what they were at the start, so the student learned from a moving teacher. Look for an optimizer, an "
            "observer or a forward pass that writes into it (a counter of the model's own, say), or give the scheme "
            "copy.deepcopy(teacher)"
        )


def _marks(model: nn.Module) -> dict[str, tuple[int, int]]:
    """For each name the tensor that it is, and how often that was written to."""
    named = (*model.named_parameters(), *model.named_buffers())
    return {clean_name(name): (id(each), 0 if each.is_inference() else each._version) for name, each in named}
