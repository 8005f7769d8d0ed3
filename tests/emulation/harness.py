"""Builds CUDA sources of kdx with g++ against the host emulation; used by the fixtures of tests/conftest.py.

`library(sources)` gives a ctypes library for `extern "C"` launchers; `module(sources, name)` a pybind11 module. Both
are cached under build/emulation by the contents of all they are made from, so a session compiles each at most once.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
ORDERS = {"forward": 0, "reverse": 1, "shuffled": 2}
FLAGS = [
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-DKDX_EMULATE",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",
    "-Wno-unknown-pragmas",
    "-fno-math-errno",
]


def compiler() -> str | None:
    """The host compiler, or None when there is none (the caller skips with that reason)."""
    return shutil.which(os.environ.get("CXX", "g++"))


def _headers() -> list[Path]:
    folders = [HERE, ROOT / "csrc"]
    return sorted(p for folder in folders for p in folder.rglob("*") if p.suffix in {".h", ".cuh"})


def _build(sources: Iterable[Path], name: str, flags: list[str]) -> Path:
    sources = [HERE / "cuda_emulation.cpp", HERE / "control.cpp", *map(Path, sources)]
    gxx = compiler()
    assert gxx is not None, "no C++ compiler"
    digest = hashlib.sha256(" ".join([gxx, *FLAGS, *flags]).encode())
    for path in [*sources, *_headers()]:
        digest.update(path.read_bytes())
    folder = ROOT / "build" / "emulation" / f"{name}-{digest.hexdigest()[:16]}"
    target = folder / f"{name}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # of the workers of a session one compiles, with both threads
        if not target.exists():
            _compile(gxx, sources, flags, target)
    return target


def _compile(gxx: str, sources: Iterable[Path], flags: list[str], target: Path) -> None:
    folder = target.parent
    include = [f"-I{HERE}", f"-I{ROOT / 'csrc' / 'include'}", f"-I{ROOT / 'csrc'}"]

    def compile_one(source: Path) -> Path:
        output = folder / f"{source.name}.{os.getpid()}.o"
        command = [gxx, *FLAGS, *flags, *include, "-x", "c++", "-c", str(source), "-o", str(output)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
        return output

    with ThreadPoolExecutor(max_workers=2) as pool:
        objects = list(pool.map(compile_one, sources))
    linked = folder / f"{target.stem}.{os.getpid()}.so"  # renamed when whole
    subprocess.run([gxx, "-shared", *map(str, objects), "-o", str(linked)], check=True)
    linked.replace(target)
    for path in objects:
        path.unlink()


def library(sources: Iterable[Path], name: str, *flags: str) -> ctypes.CDLL:
    """The sources and the emulation as one library; launchers return `const char*` (None: fine)."""
    return ctypes.CDLL(str(_build(sources, name, list(flags))))


def module_file(sources: Iterable[Path], name: str, *more: str) -> Path:
    """The sources, which hold `PYBIND11_MODULE(name, ...)`, built as a Python module for a process to load."""
    import pybind11

    flags = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}", "-fvisibility=hidden", *more]
    return _build(sources, name, flags)


def module(sources: Iterable[Path], name: str) -> ModuleType:
    """The same, loaded and not put into sys.modules; a process can load one module of a name."""
    path = module_file(sources, name)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


class Emulation:
    """The switches of one built library: the architecture its launchers see and the order threads run in."""

    def __init__(self, path_or_library: ctypes.CDLL | str) -> None:
        lib = ctypes.CDLL(path_or_library) if isinstance(path_or_library, str) else path_or_library
        lib.kdx_emulation_set.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_uint64]
        lib.kdx_emulation_launches.restype = ctypes.c_long
        self._lib: Any = lib

    @contextmanager
    def settings(self, arch: int = 90, order: str = "forward", seed: int = 0) -> Iterator[None]:
        """Run the body's launches as on compute capability `arch`, threads and blocks in `order`."""
        self._lib.kdx_emulation_set(arch, ORDERS[order], seed)
        try:
            yield
        finally:
            self._lib.kdx_emulation_set(90, 0, 0)

    def launches(self) -> int:
        """How many kernels this library has launched so far."""
        return int(self._lib.kdx_emulation_launches())
