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


def plan_with(checkout, folder, gpus=None, knows="80 86 89 90a 100 120", compiles=True, **environment):
    """What setup.py plans beside an nvcc that knows these architectures and GPUs of these compute capabilities."""
    scripts = {
        "nvcc": """#!/bin/sh
case "$*" in
  --version) echo "Cuda compilation tools" ; exit 0 ;;
  *--dryrun*) for arch in KNOWS; do case "$*" in *code=sm_$arch\\ *) exit 0 ;; esac; done; exit 1 ;;
esac
echo "unsupported GNU version" >&2; exit COMPILES
""".replace("KNOWS", knows).replace("COMPILES", "0" if compiles else "1")
    }
    if gpus is not None:
        scripts["nvidia-smi"] = "#!/bin/sh\n" + "".join(f"echo {gpu}\n" for gpu in gpus)
    for name, text in scripts.items():
        Path(folder, name).write_text(text)
        Path(folder, name).chmod(0o755)
    code = """
import json, runpy, setuptools
setuptools.setup = lambda **options: None
print(json.dumps(runpy.run_path("setup.py")["PLAN"]))
"""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("KDX_", "CUDA_")) and key != "CXX"}
    env["PATH"] = f"{folder}{os.pathsep}{env['PATH']}"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=checkout, env=env | environment, capture_output=True, text=True, check=False)


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="without g++ nothing native is planned")


@needs_compiler
@pytest.mark.parametrize(
    ("gpus", "knows", "archs", "left_out"),
    [
        (["7.5"], "75 80 86 89 90a", None, "sm_75: the kernels need compute capability 8.0"),
        (["8.9"], "80 86 89 90a", ["89"], {}),
        (["7.5", "8.6"], "75 80 86", ["86"], {"75": "the kernels need compute capability 8.0"}),
        (["8.9"], "80 86", ["86"], {"89": "this nvcc does not know it"}),
        (["10.3"], "80 90a 100", ["100"], {"103": "this nvcc does not know it"}),
        (["12.0"], "80 90a", None, "sm_120: this nvcc does not know it"),
        (["9.0"], "80 86", None, "sm_90a: this nvcc does not know it"),
        (["9.0", "10.0"], "80 90a 100", ["90a", "100"], {}),
    ],
)
def test_auto_builds_for_the_gpus_that_are_here_and_leaves_out_the_rest(
    checkout, tmp_path, gpus, knows, archs, left_out
):
    done = plan_with(checkout, tmp_path, gpus, knows)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["cpu"] is None
    assert plan.get("archs") == archs
    assert (plan["cuda"] if archs is None else plan["archs_left_out"]) == left_out


@needs_compiler
def test_auto_goes_without_an_nvcc_that_refuses_the_host_compiler(checkout, tmp_path):
    plan = json.loads(plan_with(checkout, tmp_path, ["8.0"], compiles=False).stdout)
    assert plan["cpu"] is None
    assert "unsupported GNU version" in plan["cuda"]


@needs_compiler
def test_the_default_covers_every_generation_that_nvcc_knows_and_names_the_others(checkout, tmp_path):
    plan = json.loads(plan_with(checkout, tmp_path, KDX_BUILD="cuda").stdout)
    assert plan["archs"] == ["80", "86", "89", "90a", "100", "120"]
    plan = json.loads(plan_with(checkout, tmp_path, knows="75 80 86 89 90a", KDX_BUILD="cuda").stdout)
    assert plan["archs"] == ["80", "86", "89", "90a"]
    assert plan["archs_left_out"] == {"100": "this nvcc does not know it", "120": "this nvcc does not know it"}


@needs_compiler
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"KDX_CUDA_ARCHS": "75 80"}, "KDX_BUILD=cuda: no code can be made for every one of these GPUs (sm_75: the"),
        ({"KDX_CUDA_ARCHS": "999"}, "(sm_999: this nvcc does not know it)"),
        ({"knows": "60 70"}, "KDX_BUILD=cuda: sm_80: this nvcc does not know it; sm_86"),
        ({"compiles": False}, "unsupported GNU version"),
    ],
)
def test_cuda_that_was_asked_for_and_cannot_be_built_is_one_sentence(checkout, tmp_path, options, message):
    done = plan_with(checkout, tmp_path, KDX_BUILD="cuda", **options)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_no_module_ever_holds_ptx():
    """Code for sm_80 that a newer GPU translates for itself has no clusters, and the launcher would use them."""
    assert "code=compute" not in (ROOT / "setup.py").read_text()


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
