"""The names of tensors in a file and in a model: mapped to each other, and compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from kdx.errors import CheckpointError
from kdx.weights_file import WeightsFile

__all__ = ["Names", "mismatch"]

SHOWN = 10
"""Most names in a message."""


def _begins(name: str, beginning: str) -> bool:
    """Whether a name begins with these whole parts; every name begins with ``""``."""
    return name.startswith(beginning) and (
        beginning == "" or beginning.endswith(".") or name == beginning or name[len(beginning)] == "."
    )


class Names:
    """The map from the names of a file to those of a model.

    Args:
        given: its ``prefix``, ``rename`` and ``skip``.
    """

    def __init__(self, given: WeightsFile) -> None:
        self.given = given

    def skipped(self, name: str) -> bool:
        """Whether a name of the model is left as it is."""
        return any(_begins(name, each) for each in self.given.skip)

    def check_skip(self, names: Iterable[str]) -> None:
        """Checks that every beginning in ``skip`` is one of a name of the model.

        Raises:
            CheckpointError: one is not.
        """
        names = list(names)
        for each in self.given.skip:
            if not any(_begins(name, each) for name in names):
                raise CheckpointError(
                    f"weights {self.given}: skip: no name of the model begins with {each!r}; it has {_some(names)}"
                )

    def mapped(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors under the names of the model, without those that are left as they are.

        Raises:
            CheckpointError: ``prefix`` or a beginning in ``rename`` is in no name, or two tensors get one name.
        """
        prefix, used, found = self.given.prefix, set[str](), dict[str, Tensor]()
        for name, value in tensors.items():
            if not name.startswith(prefix):
                continue
            new = name[len(prefix) :]
            old = max((each for each in self.given.rename if _begins(new, each)), key=len, default=None)
            if old is not None:
                used.add(old)
                new = self.given.rename[old] + new[len(old) :]
            if new in found:
                raise CheckpointError(f"weights {self.given}: the map gives two tensors the name {new!r}")
            if not self.skipped(new):
                found[new] = value
        for what, absent in (
            ("prefix", [prefix] if prefix and not any(name.startswith(prefix) for name in tensors) else []),
            ("rename", sorted(self.given.rename.keys() - used)),
        ):
            if absent:
                raise CheckpointError(
                    f"weights {self.given}: {what}: no name begins with {absent[0]!r}; the file has {_some(tensors)}"
                )
        return found


def mismatch(
    given: WeightsFile,
    found: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    model: str,
) -> str | None:
    """The fault of mapped tensors for a model, and what to write; None if all names and shapes are right.

    Args:
        given: the source.
        found: its tensors under their own names.
        tensors: those as they were mapped.
        state: of the model.
        model: how the message names it.
    """
    missing = [name for name in state if name not in tensors]
    strange = [name for name in tensors if name not in state]
    other = [name for name in state if name in tensors and _shape(tensors[name]) != _shape(state[name])]
    if not missing and not strange and not other:
        return None
    shapes = {name: f"{name} {_shape(tensors[name])}, not {_shape(state[name])}" for name in other}
    kinds = [
        (missing, "missing", missing),
        (strange, "not in the model", strange),
        (other, "of another shape", list(shapes.values())),
    ]
    each = SHOWN // sum(bool(names) for names, _, _ in kinds)
    parts = [
        f"{len(names)} {'is' if len(names) == 1 else 'are'} {what} ({', '.join(shown[:each])}"
        f"{', ...' if len(names) > each else ''})"
        for names, what, shown in kinds
        if names
    ]
    message = f"weights {given} do not fit {model}: of its names {'; '.join(parts)}"
    advice, after = _advice(found, state) if not (given.prefix or given.rename) else None, ""
    if advice is None and other and not missing and not strange:
        places = sorted({name.rpartition(".")[0] or name for name in other})
        if len(places) <= 2 and len(other) < len(state):
            advice, after = f"skip: [{', '.join(places)}]", f", if {places[0]} is to stay as it is drawn"
    if advice is None:
        return f"{message}. They are the weights of another architecture, or names to map with prefix, rename and skip"
    return f"{message}. Write weights: {{file: {given.file}, {advice}}}{after}"


def _advice(found: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str | None:
    """The prefix or the new beginnings with which more than half of the model's tensors would be there."""

    def fitting(change: Callable[[str], str | None]) -> int:
        changed = {new: value for name, value in found.items() if (new := change(name)) is not None}
        return sum(name in changed and _shape(changed[name]) == _shape(value) for name, value in state.items())

    plain = fitting(lambda name: name)
    scored: list[tuple[int, int, str]] = []
    for prefix in _beginnings(found):
        score = fitting(lambda name, prefix=prefix: name[len(prefix) :] if name.startswith(prefix) else None)  # type: ignore[misc]
        scored.append((score, -len(prefix), f"prefix: {prefix}"))
    for prefix in _beginnings(state):
        score = fitting(lambda name, prefix=prefix: prefix + name)  # type: ignore[misc]
        scored.append((score, -len(prefix), f"rename: {{'': {prefix}}}"))
    if changes := _changed_beginnings(found, state):
        shown = ", ".join(f"{old}: {new}" for old, new in changes.items())
        scored.append((len(state), -len(shown), f"rename: {{{shown}}}"))
    best = max(scored, default=(0, 0, ""))
    return best[2] if best[0] > plain and 2 * best[0] > len(state) else None


def _beginnings(names: Iterable[str]) -> list[str]:
    """The beginnings of names up to a dot."""
    found = {name[: at + 1] for name in names for at, letter in enumerate(name) if letter == "."}
    return sorted(found)[:1000]


def _changed_beginnings(found: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, str] | None:
    """Old -> new beginnings, if the tensors are the same ones in the same order under a few other beginnings."""
    if [_shape(value) for value in found.values()] != [_shape(value) for value in state.values()]:
        return None
    changes: dict[str, str] = {}
    for old, new in zip(found, state, strict=True):
        ours, theirs = old.split("."), new.split(".")
        while ours and theirs and ours[-1] == theirs[-1]:
            ours.pop()
            theirs.pop()
        if not ours and not theirs:
            continue
        if not ours or not theirs or changes.setdefault(".".join(ours), ".".join(theirs)) != ".".join(theirs):
            return None
    return changes if 0 < len(changes) <= SHOWN // 2 else None


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
