"""The parts that the scripts which cut data for kdx share."""

from __future__ import annotations

import argparse
import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[np.generic]]
DATA = Path(__file__).resolve().parent.parent / "kdx" / "data"


def checked(path: Path, sha256: str) -> bytes:
    """The bytes of a source file, which must have this SHA-256."""
    raw = path.read_bytes()
    if (found := hashlib.sha256(raw).hexdigest()) != sha256:
        raise ValueError(f"{path} is not the file this subset is cut from: SHA-256 {found}, want {sha256}")
    return raw


def text(lines: list[str]) -> npt.NDArray[np.uint8]:
    """Lines of ASCII text as bytes."""
    if any("\n" in line for line in lines):
        raise ValueError("a line must not have a line break in it")
    return np.frombuffer("\n".join(lines).encode("ascii"), np.uint8)


def encode(arrays: Arrays) -> bytes:
    """An ``.npz`` that ``numpy.load`` reads, with fixed time stamps so that equal arrays give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3  # the byte differs between systems otherwise
            archive.writestr(info, member.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)
    return buffer.getvalue()


def command(cut: Callable[[Path], Arrays], output: Path, description: str | None, source: str) -> int:
    """Write what ``cut`` makes of the source named on the command line; print its SHA-256 and size."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help=source)
    parser.add_argument("--output", type=Path, default=output, help="file to write (default: %(default)s)")
    options = parser.parse_args()
    blob = encode(cut(options.source))
    options.output.write_bytes(blob)
    print(f"{hashlib.sha256(blob).hexdigest()}  {options.output}  {len(blob)} bytes")
    return 0
