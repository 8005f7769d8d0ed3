"""A user's own components: classes and functions in Python files that a recipe names, ``my_models.py:Net``."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from kdx.errors import PluginError, TrustError, UnknownNameError, nearest

__all__ = ["OwnFiles", "is_own"]

_PREFIX = "kdx_own_"
_NAME = re.compile(r"(?P<file>.+\.py):(?P<attribute>[^\W\d]\w*(\.[^\W\d]\w*)*)")


def is_own(name: str) -> bool:
    """Whether the name of a component is one in a file.

    Example:
        >>> is_own("nets/my_models.py:Net"), is_own("convnet")
        (True, False)
    """
    return _NAME.fullmatch(name) is not None


class OwnFiles:
    """The Python files beside a recipe, which it may name, and those elsewhere that are trusted.

    A file in the recipe's folder, or below it, runs when the recipe names it, as a script would; links count as what
    they lead to. At its top it may import other files beside it; an installed module of the same name goes first.

    Args:
        folder: of the recipe; names are relative to it.
        trusted: further files that may run; True: all that are named.
        copies: name -> file in the folder of a run that stands for it; there is no recipe, and none is trusted.
    """

    def __init__(
        self, folder: Path, trusted: Iterable[Path] | bool = (), copies: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self._copies = copies
        self._all = trusted is True
        self._trusted = frozenset() if isinstance(trusted, bool) else frozenset(each.resolve() for each in trusted)
        self._modules: dict[str, _Own] = {}

    def trusting(self, trusted: Iterable[Path] | bool) -> OwnFiles:
        """The same files, some more of them trusted; what is loaded stays loaded."""
        more = trusted if isinstance(trusted, bool) else (*self._trusted, *trusted)
        found = OwnFiles(self.folder, self._all or more, self._copies)
        found._modules = self._modules
        return found

    @property
    def loaded(self) -> dict[str, Path]:
        """Files that were run: those that were named, as the recipe writes them, and those that they imported."""
        root = self.folder.resolve()
        return {
            path.relative_to(root).as_posix() if path.is_relative_to(root) else name: path
            for name, each in self._modules.items()
            for path in (self.path(name), *each.imported)
        }

    def path(self, file: str) -> Path:
        """The file that a name like ``my_models.py`` stands for, whether it is there or not."""
        return (self.folder / (file if self._copies is None else self._copies.get(file, file))).resolve()

    @property
    def copies(self) -> dict[str, Path]:
        """Name of what was run -> where a run's folder keeps its copy, relative to the folder."""
        kept = {}
        for name, path in self.loaded.items():
            inside = not Path(name).is_absolute() and ".." not in Path(name).parts
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            kept[name] = Path("code", name if inside else f"{digest[:12]}/{path.name}")
        return kept

    def runs(self, name: str) -> bool:
        """Whether the file that a name stands for has been run already, as the recipe names it, or is trusted.

        A file that a run wrote may name no other.
        """
        match = _NAME.fullmatch(name)
        assert match is not None
        path = self.path(match["file"])
        return self._all or path in self._trusted or path in self.loaded.values()

    def load(self, name: str) -> Any:
        """The class or function that a name like ``my_models.py:Net`` stands for.

        Raises:
            UnknownNameError: there is no such file, or nothing of this name in it.
            TrustError: the file is neither beside the recipe nor trusted; path and hash are shown.
            PluginError: it does not import.
        """
        match = _NAME.fullmatch(name)
        assert match is not None
        module = self._own(match["file"]).module
        try:
            return functools.reduce(getattr, match["attribute"].split("."), module)
        except AttributeError:
            own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
            raise UnknownNameError(
                f"{self.path(match['file'])} has no {match['attribute']!r}; {nearest(match['attribute'], own)}"
            ) from None

    def _own(self, file: str) -> _Own:
        if file in self._modules:
            return self._modules[file]
        path, root = self.path(file), self.folder.resolve()
        if not path.is_file():
            near = [each.relative_to(root).as_posix() for each in root.glob("*.py")]
            raise UnknownNameError(f"there is no file {path}, for {file!r}; {nearest(file, near)}")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        beside = self._copies is None and path.is_relative_to(root)
        if not (self._all or path in self._trusted or beside):
            if self._copies is not None:
                raise TrustError(
                    f"{file!r} is not run: {path} (sha256 {digest[:16]}) is in the folder of a run, whose "
                    "files run nothing by themselves. If you know what it does, allow it with "
                    f"--trust {path} (trust=True in Python)"
                )
            raise TrustError(
                f"{file!r} is not run: {path} (sha256 {digest[:16]}) is not in the recipe's folder {root}. If you "
                f"know what it does, allow it with --trust {path} (trust={str(path)!r} in Python), or put it there"
            )
        self._modules[file] = _run(path, digest)
        return self._modules[file]


@dataclass(frozen=True, slots=True)
class _Own:
    """A file that was run, and the files beside it that it imported."""

    module: ModuleType
    imported: tuple[Path, ...]


_runs: dict[str, _Own] = {}


def _run(path: Path, digest: str) -> _Own:
    """Runs a file; the same contents in the same place only once, so that its classes stay the same."""
    name = f"{_PREFIX}{path.stem}_{hashlib.sha256(f'{path} {digest}'.encode()).hexdigest()[:12]}"
    if name in _runs:
        return _runs[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs, as dataclasses and pickle look themselves up
    try:
        with _importing(path.parent) as found:
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise PluginError(f"{path} does not import: {type(error).__name__}: {error}") from error
    _runs[name] = _Own(module, tuple(found.values()))
    return _runs[name]


@contextmanager
def _importing(folder: Path) -> Iterator[dict[str, Path]]:
    """Lets the imports of its body find modules in a folder, after all that is installed, and tells which they were.

    They are not left under their names, which files of other folders may have too.
    """
    before, found = set(sys.modules), dict[str, Path]()
    importlib.invalidate_caches()
    sys.path.append(str(folder))
    try:
        yield found
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if not name.startswith(_PREFIX) and file and Path(file).resolve().is_relative_to(folder):
                found[name] = Path(file).resolve()
                del sys.modules[name]
