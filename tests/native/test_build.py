"""What setup.py builds, what it says when it cannot, and the choice of the instruction set at run time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import kdx
from kdx.ops import _native

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what a build reads, so that nothing is written into this one."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    ignore = shutil.ignore_patterns("*.so", "build_info.json", "__pycache__")
    for name in ("kdx", "kdx_ext", "csrc"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    return folder


def setup(checkout, *arguments, **environment):
    env = {key: value for key, value in os.environ.items() if key not in ("KDX_BUILD", "KDX_CUDA_ARCHS", "CXX")}
    return subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=checkout,
        env=env | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def wheel(checkout, out, **environment):
    """Build a wheel; its path and the build_info.json in it."""
    done = setup(checkout, "bdist_wheel", "-d", str(out), **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = out.iterdir()
    with zipfile.ZipFile(path) as archive:
        info = json.loads(archive.read("kdx_ext/build_info.json"))
        assert not [name for name in archive.namelist() if name.endswith(".so")]
    return path, info


def test_none_makes_a_pure_wheel(checkout, tmp_path):
    path, info = wheel(checkout, tmp_path, KDX_BUILD="none")
    assert path.name.endswith("py3-none-any.whl")
    assert info == {"mode": "none", "cpu": "built with KDX_BUILD=none", "cuda": "built with KDX_BUILD=none"}


def test_auto_without_a_compiler_makes_a_pure_wheel_and_says_why(checkout, tmp_path):
    path, info = wheel(checkout, tmp_path, KDX_BUILD="auto", CXX="no-such-compiler")
    assert path.name.endswith("py3-none-any.whl")
    for kind in ("cpu", "cuda"):
        assert "no working C++ compiler (no-such-compiler is not on PATH)" in info[kind]


def test_auto_with_a_compiler_that_does_not_work_says_what_it_said(checkout, tmp_path):
    _, info = wheel(checkout, tmp_path, KDX_BUILD="auto", CXX="false")
    assert "`false -std=c++17" in info["cpu"]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"KDX_BUILD": "fast"}, "KDX_BUILD='fast': expected one of auto, cpu, cuda, none"),
        ({"KDX_BUILD": "cpu", "CXX": "no-such-compiler"}, "KDX_BUILD=cpu: no working C++ compiler"),
        ({"KDX_BUILD": "cuda", "CUDA_HOME": "/nowhere"}, "KDX_BUILD=cuda: nvcc is not in /nowhere/bin"),
        ({"KDX_BUILD": "cuda", "KDX_CUDA_ARCHS": "hopper"}, "KDX_CUDA_ARCHS='hopper': expected architectures such as"),
    ],
)
def test_what_was_asked_for_and_cannot_be_is_an_error(checkout, environment, message):
    if environment["KDX_BUILD"] == "cuda" and shutil.which("g++") is None:
        pytest.skip("without g++ the compiler is what is missing first")
    done = setup(checkout, "--version", **environment)
    assert done.returncode != 0
    assert message in done.stderr


def test_no_source_knows_torch():
    """One build serves every torch, and a kernel compiles in seconds."""
    sources = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"}]
    assert len(sources) > 10
    for path in sources:
        includes = [line for line in path.read_text().splitlines() if line.startswith("#include")]
        assert not [line for line in includes if "torch" in line or "ATen" in line or "c10" in line], path


def test_the_note_of_the_build_is_what_the_package_reports():
    info = kdx.ops.build_info()
    module, _ = _native.compiled("cpu")
    assert (info["cpu"] is None) == (module is not None)


@pytest.mark.parametrize("limit", ["base", "avx2", "avx512", "amx"])
def test_the_instruction_set_can_be_lowered_and_results_stay_in_the_budget(limit):
    if kdx.ops.backends()["cpu"] is not None:
        pytest.skip(kdx.ops.backends()["cpu"])
    code = """
import json, torch, kdx
from kdx.ops import _native
generator = torch.Generator().manual_seed(0)
errors = []
for dtype, divergence in ((torch.float32, "forward"), (torch.bfloat16, "jsd"), (torch.float16, "reverse")):
    s = (3 * torch.randn(5, 1001, generator=generator)).to(dtype)
    t = s + torch.randn(5, 1001, generator=generator).to(dtype)
    mine = kdx.ops.softmax_kl(s, t, divergence=divergence, backend="cpu").double()
    want = kdx.ops.softmax_kl(s.double(), t.double(), divergence=divergence, backend="reference")
    errors.append(((mine - want).abs() / want).item())
for depth in (20, 200):  # the second one is multiplied by the matrix engine where there is one
    s, t = torch.randn(70, depth, generator=generator), torch.randn(70, 40, generator=generator)
    for scale in (1.0, 1e-9, 1e9):
        ours, exact = (scale * s).requires_grad_(), (scale * s).double().requires_grad_()
        mine = torch.autograd.grad(kdx.ops.rkd(ours, t, backend="cpu"), ours)[0].double()
        want = torch.autograd.grad(kdx.ops.rkd(exact, t.double(), backend="reference"), exact)[0]
        errors.append(((mine - want).norm() / want.norm()).item())
print(json.dumps([_native.native("cpu").isa(), errors]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"KDX_CPU_ISA": limit},
        capture_output=True,
        text=True,
        check=True,
    )
    isa, errors = json.loads(done.stdout)
    order = ["base", "avx2", "avx512", "amx"]
    own = _native.native("cpu").isa()
    assert isa == min(own, limit, key=order.index)
    assert max(errors) < 1e-5
