"""The CUDA kernels built with ThreadSanitizer, with places in them that a run can leave out.

Every place is one text of one source, which must be there exactly once; it becomes conditional, so that a single
program runs the kernels as they are and, asked for a number, without that barrier or fence. See races.cpp.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from tests.emulation import harness

__all__ = ["FAMILIES", "PLACES", "Outcome", "Place", "marked", "program", "run"]

FAMILIES = (
    "softmax_kl_lanes",
    "softmax_kl_blocks",
    "softmax_kl_clusters",
    "scale_grad",
    "rkd_small",
    "rkd_large",
    "topk_kl",
)


class Place(NamedTuple):
    """A barrier or fence of a kernel: what it is, the family that must notice its absence, the source, and its text.

    ``before`` and ``after`` are the text around it; ``left_out`` itself becomes conditional.
    """

    name: str
    family: str
    source: str
    before: str
    left_out: str
    after: str


_SYNC = "__syncthreads();"
PLACES = (
    Place(
        "rkd block sum, before its scratch is written again",
        "rkd_small",
        "cuda/rkd_tile.cuh",
        "",
        _SYNC,
        "  // the scratch may still be read from the last call",
    ),
    Place(
        "rkd block sum, before its scratch is read",
        "rkd_small",
        "cuda/rkd_tile.cuh",
        "scratch[threadIdx.x / 32] = value;\n  ",
        _SYNC,
        "\n  float total = 0.0f;",
    ),
    Place(
        "rkd measure, before a tile is written",
        "rkd_small",
        "cuda/rkd_measure.cu",
        "d0 += kSlab) {\n    ",
        _SYNC,
        "\n    for (int e",
    ),
    Place(
        "rkd measure, before a tile is read",
        "rkd_small",
        "cuda/rkd_measure.cu",
        "    }\n    ",
        _SYNC,
        "\n    // Runs of 8",
    ),
    Place(
        "rkd angle, before a slab is written",
        "rkd_small",
        "cuda/rkd_angle.cu",
        "k0 += kSlab) {\n      ",
        _SYNC,
        "\n      stage<kTile>",
    ),
    Place(
        "rkd angle, before a slab is read",
        "rkd_small",
        "cuda/rkd_angle.cu",
        "lj, legs_j);\n      ",
        _SYNC,
        "\n      // Points past N",
    ),
    Place(
        "rkd gradient, before a slab is written",
        "rkd_small",
        "cuda/rkd_gradient.cu",
        "j0 += kSlab) {\n    ",
        _SYNC,
        "\n    for (int e",
    ),
    Place(
        "rkd gradient, before a slab is read",
        "rkd_small",
        "cuda/rkd_gradient.cu",
        "    }\n    ",
        _SYNC,
        "\n#pragma unroll\n    for (int j",
    ),
    Place(
        "softmax_kl, between the warps of a block",
        "softmax_kl_blocks",
        "cuda/softmax_kl_row.cuh",
        "warps[warp] = mine;\n    ",
        _SYNC,
        "\n    Stats<A> block",
    ),
    Place(
        "softmax_kl, between the warps of a block that sum",
        "softmax_kl_blocks",
        "cuda/softmax_kl_row.cuh",
        "mine[warp] = x;\n    ",
        _SYNC,
        "\n    const A block",
    ),
    Place(
        "softmax_kl, the exchange of a cluster's maxima",
        "softmax_kl_clusters",
        "cuda/softmax_kl_row.cuh",
        "*map_shared(parts + rank, threadIdx.x) = block;\n    ",
        "cluster_sync();",
        "\n    return",
    ),
    Place(
        "softmax_kl, the exchange of a cluster's sums",
        "softmax_kl_clusters",
        "cuda/softmax_kl_row.cuh",
        "*map_shared(mine + 32 + rank, threadIdx.x) = block;\n    ",
        "cluster_sync();",
        "\n    return",
    ),
    Place(
        "softmax_kl, the total of a block",
        "softmax_kl_lanes",
        "cuda/softmax_kl_kernels.cuh",
        "sums[warp] = of_warp;\n  ",
        _SYNC,
        "\n  if (threadIdx.x == 0) {",
    ),
    Place(
        "softmax_kl, the fence before the ticket",
        "softmax_kl_lanes",
        "cuda/softmax_kl_kernels.cuh",
        "partial[part] = total;\n      ",
        "__threadfence();",
        "\n      last[0]",
    ),
    Place(
        "softmax_kl, the fence behind the ticket",
        "softmax_kl_lanes",
        "cuda/softmax_kl_kernels.cuh",
        "if (!last[0]) return;\n  ",
        "__threadfence();",
        "\n  double total",
    ),
    Place(
        "softmax_kl, the total of the blocks",
        "softmax_kl_lanes",
        "cuda/softmax_kl_kernels.cuh",
        "sums[warp] = total;\n  ",
        _SYNC,
        "\n  if (threadIdx.x != 0) return;",
    ),
    Place(
        "topk_kl, between the warps of a block",
        "topk_kl",
        "cuda/topk_kl.cu",
        "parts[warp] = mine;\n  ",
        _SYNC,
        "\n  return warp_sum",
    ),
    Place(
        "topk_kl, before the classes are marked",
        "topk_kl",
        "cuda/topk_kl.cu",
        "bits[w] = 0;\n  ",
        _SYNC,
        "\n  for (std::int64_t k",
    ),
    Place(
        "topk_kl, before the marks are read", "topk_kl", "cuda/topk_kl.cu", "1u << (id % 32));\n  }\n  ", _SYNC, "\n}"
    ),
    Place(
        "topk_kl, before listed classes are written anew",
        "topk_kl",
        "cuda/topk_kl.cu",
        "",
        _SYNC,
        "  // what the block wrote is there",
    ),
)


def marked(sources: dict[str, str], places: tuple[Place, ...] = PLACES) -> dict[str, str]:
    """The sources with each place left out where ``kdx_left_out`` is its number, counted from 1.

    Raises:
        ValueError: A place's text is not in its source exactly once.
    """
    sources = dict(sources)
    for number, place in enumerate(places, 1):
        text = place.before + place.left_out + place.after
        found = sources[place.source].count(text)
        if found != 1:
            raise ValueError(
                f"{place.name}: expected its text once in {place.source}, found it {found} times: {text!r}"
            )
        conditional = f"if (::kdx_left_out != {number}) {place.left_out}"
        sources[place.source] = sources[place.source].replace(text, place.before + conditional + place.after)
    return sources


def program() -> Path:
    """The program of races.cpp, built once for what the sources and the emulation hold.

    Raises:
        RuntimeError: The compiler knows no ThreadSanitizer, with what it said.
    """
    csrc = harness.ROOT / "csrc"
    files = [p for p in csrc.rglob("*") if p.suffix in {".h", ".cuh"} or p.parent == csrc / "cuda"]
    sources = marked({str(p.relative_to(csrc)): p.read_text() for p in sorted(files) if p.is_file()})
    flags = ["-std=c++17", "-O1", "-g1", "-fno-math-errno", "-w", "-DKDX_EMULATE", "-DKDX_RACES"]
    gxx = harness.compiler()
    assert gxx is not None, "no C++ compiler"
    digest = hashlib.sha256(" ".join([gxx, *flags]).encode())
    own = sorted([*harness.HERE.glob("*.cpp"), *harness.HERE.glob("*.h")])
    for text in [*sources.values(), *(p.read_text() for p in own)]:
        digest.update(text.encode())
    folder = harness.ROOT / "build" / "emulation" / f"races-{digest.hexdigest()[:16]}"
    target = folder / "races"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not target.exists():
            _build(gxx, flags, sources, target)
    return target


def _build(gxx: str, flags: list[str], sources: dict[str, str], target: Path) -> None:
    folder = target.parent
    for name, text in {**sources, "left_out.h": "extern int kdx_left_out;\n"}.items():
        path = folder / "csrc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    include = [f"-I{harness.HERE}", f"-I{folder / 'csrc' / 'include'}", f"-I{folder / 'csrc'}"]
    include += ["-include", str(folder / "csrc" / "left_out.h")]

    def compile_one(source: Path) -> str:
        output = str(folder / f"{source.name}.o")
        seen = [] if source.name == "cuda_emulation.cpp" else ["-fsanitize=thread"]  # see races.h
        _call([gxx, *flags, *seen, *include, "-x", "c++", "-c", str(source), "-o", output])
        return output

    files = sorted(
        (folder / "csrc" / "cuda").glob("*.cu"), key=lambda p: "softmax_kl_" not in p.name
    )  # long ones first
    files += [harness.HERE / "races.cpp", harness.HERE / "cuda_emulation.cpp"]
    with ThreadPoolExecutor(max_workers=2) as pool:
        objects = list(pool.map(compile_one, files))
    linked = folder / "linked"
    _call([gxx, "-fsanitize=thread", "-rdynamic", *objects, "-o", str(linked)])
    linked.replace(target)  # when it is whole
    for name in objects:
        Path(name).unlink()


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


@dataclass(frozen=True)
class Outcome:
    """What a run of one family said: a line for each call, with its error or "ok", and the digest of its results."""

    calls: tuple[str, ...]
    errors: tuple[str, ...]


def run(order: str, asked: list[tuple[str, int]]) -> tuple[list[Outcome], str]:
    """One process that runs each ``(family, number of the place left out or 0)``; the outcomes and the reports."""
    words = [str(word) for pair in asked for word in pair]
    environment = os.environ | {"TSAN_OPTIONS": "history_size=0:exitcode=0"}
    done = subprocess.run(
        [str(program()), str(harness.ORDERS[order]), *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if done.returncode:
        raise RuntimeError(f"races ended with {done.returncode}: {done.stderr[-4000:]}")
    outcomes = []
    for part in done.stdout.split("run ")[1:]:
        lines = part.splitlines()[1:]
        errors = [line for line in lines if " ok " not in line]
        outcomes.append(Outcome(tuple(lines), tuple(errors)))
    return outcomes, done.stderr
