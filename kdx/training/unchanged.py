"""Frozen teachers of a run, known by their fingerprints before and after it."""

from __future__ import annotations

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
        run.teachers = {name: digest_of(digests) for name, digests in self._before.items()}

    def check(self) -> None:
        """Compares the teachers with what they were.

        Raises:
            TeacherChangedError: one has changed; its tensors are named.
        """
        for name, model in self.models.items():
            before, now = self._before[name], tensor_digests(model)
            if changed := [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]:
                more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
                raise TeacherChangedError(
                    f"the frozen teacher {name!r} changed during training: {', '.join(map(repr, changed[:_SHOWN]))}"
                    f"{more} are not what they were at the start, so the student learned from a moving teacher. Look "
                    "for an optimizer, an observer or a forward pass that writes into it, or give the scheme "
                    "copy.deepcopy(teacher)"
                )
