"""The kernels of the CPU under AddressSanitizer and UndefinedBehaviorSanitizer, on each instruction set it has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kdx.ops import _native

ROOT = Path(__file__).parents[2]
FLAGS = "-O1 -fsanitize=address,undefined -fno-sanitize-recover=all"
LEVELS = ("base", "avx2", "avx512", "amx")

# Cases of the fuzzer, then sizes around those of vectors, tiles and panels, whose values other tests compare.
WORK = """
import importlib.util, itertools, sys, torch
spec = importlib.util.spec_from_file_location("_cpu", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from kdx.ops import SparseTargets, _native, kd_loss, rkd, softmax_kl, topk_kl
from tests.ops import fuzz

torch.set_num_threads(2)
generator = torch.Generator().manual_seed(0)

def random(*shape, dtype):
    return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

with _native.override("cpu", module):
    assert module.isa() == sys.argv[2], module.isa()
    print(*fuzz.problems(int(sys.argv[3]), int(sys.argv[4]), ["cpu"]), sep="\\n", file=sys.stderr)
    for classes, dtype in itertools.product([*range(1, 35), 63, 127, 128, 129, 1000, 1027], fuzz.DTYPES):
        for shape, dim in (((3, classes), 1), ((2, classes, 19), 1)):
            s, t = random(*shape, dtype=dtype), random(*shape, dtype=dtype)
            rows = torch.zeros(s.sum(dim).shape, dtype=torch.int64)
            loss = softmax_kl(s, t, divergence="jsd", dim=dim, backend="cpu")
            (loss + kd_loss(s, t, rows, dim=dim, backend="cpu")).backward()
    for points, depth, dtype in itertools.product([2, 15, 16, 17, 33, 70], [1, 16, 31, 128, 131], fuzz.DTYPES):
        rkd(random(points, depth, dtype=dtype), random(points, 5, dtype=dtype), backend="cpu").backward()
    tails = [("bucket", "forward"), ("bucket", "jsd"), ("even", "reverse"), ("renormalise", "forward")]
    for classes, kept, dtype in itertools.product([3, 16, 17, 129, 1027], [1, 2, 3], fuzz.DTYPES):
        top = random(4, classes, dtype=torch.float32).detach().log_softmax(1).topk(kept)
        valid = torch.rand(4, kept, generator=generator) < 0.8
        rows = torch.tensor([0, classes - 1, -100, 1])
        for tail, divergence in tails:
            s = random(4, classes, dtype=dtype)
            targets = SparseTargets(top.indices, top.values, valid=valid)
            loss = topk_kl(
                s, targets, tail=tail, divergence=divergence, labels=rows, alpha=0.5, temperature=1.0, backend="cpu"
            )
            loss.backward()
print("done", module.isa())
"""


def _library(name: str) -> str | None:
    """Where g++ has a library, or None."""
    found = subprocess.run(
        ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return found if Path(found).is_absolute() else None


@pytest.fixture(scope="module")
def runtime() -> str:
    """What is loaded before everything else, so that the sanitizers see every allocation."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ to build the kernels with")
    libraries = [_library(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so.6")]
    if None in libraries:
        pytest.skip("g++ has no libasan and libubsan here")
    return ":".join(filter(None, libraries))


@pytest.fixture(scope="module")
def sanitized(runtime, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sanitized")
    environment = os.environ | {"KDX_BUILD": "cpu", "CXX": "g++", "KDX_CXXFLAGS": FLAGS}
    command = [sys.executable, "setup.py", "-q", "build_ext"]
    command += ["--build-lib", str(folder / "lib"), "--build-temp", str(folder / "temp")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (module,) = (folder / "lib" / "kdx_ext").glob("_cpu*.so")
    return module


def _run(module: Path, level: str, runtime: str, seed: int, cases: int) -> subprocess.CompletedProcess[str]:
    # Leaks: those of Python and torch would be counted, which free nothing at the end.
    environment = os.environ | {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "KDX_CPU_ISA": level}
    environment |= {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WORK, str(module), level, str(seed), str(cases)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # compiling takes two minutes of two free cores, more of busy ones
def test_no_address_is_wrong_and_nothing_is_undefined_on_any_instruction_set(sanitized, runtime):
    own = _native.compiled("cpu")[0]
    best = own.isa() if own is not None else "base"
    for level in LEVELS[: LEVELS.index(best) + 1]:
        seed = int(os.environ.get("KDX_FUZZ_SEED", "0"))
        done = _run(sanitized, level, runtime, seed, 60)
        assert done.returncode == 0, f"{level}: {done.stderr[-4000:]}"
        assert done.stdout == f"done {level}\n"
        assert not done.stderr.strip(), f"{level}: {done.stderr[-4000:]}"
