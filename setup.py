"""Compiles kdx_ext through ninja; all metadata lives in pyproject.toml.

KDX_BUILD=auto (default)  the CPU module where a C++ compiler is, the CUDA module where nvcc and a GPU are, for that GPU
          cpu | cuda      that module (cuda: both), or an error that says what is missing
          none            pure Python
KDX_CUDA_ARCHS            architectures of the CUDA module; with KDX_BUILD=cuda the default is those of
                          "80 86 89 90a 100 120" that the installed nvcc knows
KDX_CXXFLAGS              more flags for the C++ compiler, after those below, for example "-O1 -fsanitize=address"

What was built, or why not, is written to kdx_ext/build_info.json, which `kdx.ops.build_info()` reads. Nothing here
needs torch: the kernels take addresses.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MODES = ("auto", "cpu", "cuda", "none")
# Machine code for each, and never PTX: a GPU would translate the PTX of an older one into kernels whose clusters are
# left out, and those compute something else.
DEFAULT_CUDA_ARCHS = ("80", "86", "89", "90a", "100", "120")
LOWEST_CUDA_ARCH = 80
X86 = platform.machine().lower() in {"x86_64", "amd64"}
# One object per instruction set; the best one the machine has is chosen when the module is used (csrc/cpu/isa.cpp).
ISA_FLAGS = {"base": []} | (
    {
        "avx2": ["-mavx2", "-mfma", "-mf16c"],
        "avx512": [
            *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"),
            "-mprefer-vector-width=512",
        ],
    }
    if X86
    else {}
)
# Never -ffast-math: inf and NaN are part of what the kernels promise.
CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
CXX_FLAGS += ["-ffp-contract=fast", "-Wall", "-Wextra"]
NVCC_FLAGS = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Xcompiler", "-fPIC,-fvisibility=hidden"]


class Missing(RuntimeError):
    """A tool the build needs is not here; the message is the reason shown to the user."""


def run(*command: str) -> str:
    """Standard output of a command, or `Missing` with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Missing(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()[-400:]}")
    return done.stdout


def find_cxx() -> tuple[str, list[str]]:
    """A C++17 compiler that works, and its OpenMP flag where it has one."""
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    reasons = []
    for name in candidates:
        if shutil.which(name.split()[0]) is None:
            reasons.append(f"{name} is not on PATH")
            continue
        with tempfile.TemporaryDirectory() as tmp:
            probe = Path(tmp, "probe.cpp")
            probe.write_text("#include <vector>\nint main() { return int(std::vector<int>(1)[0]); }\n")
            for openmp in (["-fopenmp"], []):
                try:
                    run(*name.split(), "-std=c++17", *openmp, str(probe), "-o", str(Path(tmp, "probe")))
                except Missing as error:
                    reasons.append(str(error))
                else:
                    return name, openmp
    raise Missing("no working C++ compiler (" + "; ".join(reasons) + "); install one, for example g++")


def find_ninja() -> str:
    """Path of the ninja executable."""
    try:
        import ninja  # the wheel brings the executable with it
    except ImportError:
        found = shutil.which("ninja")
        if found is None:
            raise Missing("ninja is not installed (pip install ninja)") from None
        return found
    return str(Path(ninja.BIN_DIR, "ninja"))


def find_nvcc() -> str:
    """Path of nvcc, under CUDA_HOME where that is set."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    found = shutil.which("nvcc", path=f"{home}/bin" if home else None)
    if found is None:
        raise Missing(f"nvcc is not {'in ' + home + '/bin' if home else 'on PATH (and CUDA_HOME is not set)'}")
    return found


def gpu_archs() -> list[str]:
    """Compute capabilities of the GPUs of this machine, as nvcc spells them."""
    if shutil.which("nvidia-smi") is None:
        raise Missing("no GPU here (nvidia-smi is not on PATH)")
    listed = run("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader").split()
    archs = sorted({cap.replace(".", "") for cap in listed if re.fullmatch(r"\d+\.\d+", cap)}, key=int)
    if not archs:
        raise Missing("no GPU here (nvidia-smi lists none)")
    return ["90a" if arch == "90" else arch for arch in archs]


def asked_archs() -> list[str]:
    """KDX_CUDA_ARCHS as a list; empty where it is not set."""
    given = os.environ.get("KDX_CUDA_ARCHS", "")
    archs = [arch.removeprefix("sm_") for arch in re.split(r"[\s,;]+", given.strip()) if arch]
    for arch in archs:
        if not re.fullmatch(r"\d{2,3}[af]?", arch):
            raise SystemExit(f"KDX_CUDA_ARCHS={given!r}: expected architectures such as '80 90a 100', got {arch!r}")
    return archs


def number(arch: str) -> int:
    """90 of "90a"."""
    return int(arch.rstrip("af"))


def code_for(arch: str) -> str:
    """The option of nvcc that makes machine code for one architecture, without PTX."""
    return f"-gencode=arch=compute_{arch},code=sm_{arch}"


def why_not(nvcc: str, arch: str) -> str | None:
    """Why the kernels cannot be compiled for an architecture, or None; nvcc is asked, and compiles nothing."""
    if number(arch) < LOWEST_CUDA_ARCH:
        return f"the kernels need compute capability {LOWEST_CUDA_ARCH / 10}"
    try:
        run(nvcc, "--dryrun", code_for(arch), "-x", "cu", "-c", os.devnull, "-o", os.devnull)
    except Missing:
        return "this nvcc does not know it"
    return None


def older_sister(nvcc: str, arch: str) -> str | None:
    """The newest default architecture whose machine code also runs on this one: of its generation, and not newer."""
    older = [a for a in DEFAULT_CUDA_ARCHS if a.isdigit() and int(a) // 10 == number(arch) // 10]
    return next((a for a in reversed(older) if int(a) <= number(arch) and why_not(nvcc, a) is None), None)


def choose_archs(mode: str, nvcc: str) -> tuple[list[str], dict[str, str]]:
    """The architectures to compile for, and why others were left out.

    Those of KDX_CUDA_ARCHS have to be possible, each of them. Without it KDX_BUILD=cuda takes the default ones that
    nvcc knows, and auto those of this machine's GPUs.
    """
    asked = asked_archs()
    wanted = asked or (gpu_archs() if mode == "auto" else list(DEFAULT_CUDA_ARCHS))
    if mode == "auto":
        gpu_archs()
    left_out = {arch: reason for arch in wanted if (reason := why_not(nvcc, arch))}
    archs = [arch for arch in wanted if arch not in left_out]
    if mode == "auto" and not asked:
        sisters = (older_sister(nvcc, arch) for arch in left_out if number(arch) >= LOWEST_CUDA_ARCH)
        archs += [sister for sister in sisters if sister]
    archs = list(dict.fromkeys(archs))
    if left_out and (asked or not archs):
        reasons = "; ".join(f"sm_{arch}: {reason}" for arch, reason in left_out.items())
        raise Missing(f"no code can be made for every one of these GPUs ({reasons})" if asked else reasons)
    return archs, left_out


def try_nvcc(nvcc: str, cxx: str, archs: list[str]) -> None:
    """Compile an empty kernel as the module will be, or `Missing`: nvcc may refuse the host compiler."""
    with tempfile.TemporaryDirectory() as tmp:
        probe = Path(tmp, "probe.cu")
        probe.write_text("#include <cuda_runtime.h>\n__global__ void probe() {}\n")
        gencode = [code_for(arch) for arch in archs]
        run(nvcc, "-ccbin", cxx, *NVCC_FLAGS, *gencode, "-c", str(probe), "-o", str(Path(tmp, "probe.o")))


def plan() -> dict[str, object]:
    """The plan of a build: {"mode", "cpu": reason or None, "cuda": reason or None, and the ninja file's settings}."""
    mode = os.environ.get("KDX_BUILD", "auto")
    if mode not in MODES:
        raise SystemExit(f"KDX_BUILD={mode!r}: expected one of {', '.join(MODES)}")
    result: dict[str, object] = {"mode": mode, "cpu": None, "cuda": None}
    if mode == "none":
        return result | {"cpu": "built with KDX_BUILD=none", "cuda": "built with KDX_BUILD=none"}
    try:
        cxx, openmp = find_cxx()
        result |= {"cxx": cxx, "openmp": openmp, "ninja": find_ninja()}
        result["compiler"] = run(*cxx.split(), "--version").splitlines()[0]
    except Missing as error:
        if mode != "auto":
            raise SystemExit(f"KDX_BUILD={mode}: {error}") from None
        return result | {"cpu": str(error), "cuda": str(error)}
    if mode == "cpu":
        return result | {"cuda": "built with KDX_BUILD=cpu"}
    try:
        nvcc = find_nvcc()
        result["nvcc_version"] = run(nvcc, "--version").splitlines()[-1]
        archs, left_out = choose_archs(mode, nvcc)
        try_nvcc(nvcc, cxx, archs)
        result |= {"nvcc": nvcc, "archs": archs, "archs_left_out": left_out}
    except Missing as error:
        if mode == "cuda":
            raise SystemExit(f"KDX_BUILD=cuda: {error}") from None
        result["cuda"] = str(error)
    if not any(ROOT.glob("csrc/cuda/*.cu")):
        result["cuda"] = "there are no CUDA sources"
    return result


PLAN = plan()


class Ninja:
    """A ninja file in the making."""

    def __init__(self) -> None:
        self.lines = ["ninja_required_version = 1.5"]

    def rule(self, name: str, command: str, depfile: bool = False) -> None:
        """How one kind of file is made."""
        self.lines += [f"rule {name}", f"  command = {command}", f"  description = {name} $out"]
        if depfile:
            self.lines += ["  depfile = $out.d", "  deps = gcc"]

    def build(self, out: Path, rule: str, inputs: list[Path], flags: list[str] | None = None) -> Path:
        """One file to make; returns it."""

        def path(p: Path) -> str:
            return str(p).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

        self.lines.append(f"build {path(out)}: {rule} {' '.join(path(p) for p in inputs)}")
        if flags:
            self.lines.append(f"  flags = {' '.join(flags)}")
        return out


def ninja_file(temp: Path, targets: dict[str, Path]) -> str:
    """The text of build.ninja: one object per source (and instruction set), one link per module."""
    import pybind11

    n = Ninja()
    includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc/include'}"]
    python = [f"-isystem {sysconfig.get_path('include')}", f"-isystem {pybind11.get_include()}"]
    openmp = list(PLAN["openmp"])  # type: ignore[call-overload]
    cxx, extra = " ".join([str(PLAN["cxx"]), *CXX_FLAGS, *openmp, *includes]), os.environ.get("KDX_CXXFLAGS", "")
    n.rule("cxx", f"{cxx} $flags {extra} -MMD -MF $out.d -c $in -o $out", depfile=True)
    undefined = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    n.rule("link", " ".join([str(PLAN["cxx"]), "-shared", "-s", *openmp, *undefined, "$in", "-o", "$out", extra]))
    # macOS' linker has dropped -s; the flag only strips symbols.
    if sys.platform == "darwin":
        n.lines = [line.replace(" -s ", " ") for line in n.lines]
    compiler = str(PLAN["compiler"]).replace('"', "").replace("'", "")
    define = ["-DKDX_X86"] if X86 else []
    if "kdx_ext._cpu" in targets:
        objects = []
        for source in sorted(ROOT.glob("csrc/cpu/*.cpp")):
            versions = ISA_FLAGS if source.stem.endswith("_isa") else {"": []}
            for isa, flags in versions.items():
                named = [f"-DKDX_ISA={isa}", *flags] if isa else []
                objects.append(n.build(temp / f"cpu_{source.stem}{isa}.o", "cxx", [source], define + named))
        for source in sorted(ROOT.glob("csrc/bind/cpu_*.cpp")):
            # Glue: -O1, because instantiating pybind11's templates takes longer than compiling the kernels.
            flags = ["-O1", *python, f"'-DKDX_COMPILER=\"{compiler}\"'"]
            objects.append(n.build(temp / f"bind_{source.stem}.o", "cxx", [source], flags))
        n.build(targets["kdx_ext._cpu"], "link", objects)
    if "kdx_ext._cuda" in targets:
        archs = list(PLAN["archs"])  # type: ignore[call-overload]
        gencode = [code_for(arch) for arch in archs]
        nvcc = " ".join([str(PLAN["nvcc"]), "-ccbin", str(PLAN["cxx"]), *NVCC_FLAGS, *gencode, *includes])
        n.rule("nvcc", f"{nvcc} -MMD -MF $out.d -c $in -o $out", depfile=True)
        n.rule("nvlink", f"{nvcc} -shared -cudart static $in -o $out")
        objects = [n.build(temp / f"{s.stem}.o", "nvcc", [s]) for s in sorted(ROOT.glob("csrc/cuda/*.cu"))]
        for source in sorted(ROOT.glob("csrc/bind/cuda_*.cpp")):
            flags = [*python, "'-DKDX_CUDA_ARCHS=\"" + " ".join(archs) + "\"'"]
            objects.append(n.build(temp / f"bind_{source.stem}.o", "cxx", [source], flags))
        n.build(targets["kdx_ext._cuda"], "nvlink", objects)
    return "\n".join(n.lines) + "\n"


def write_info(folder: Path) -> None:
    """Leave a note of what was built and why the rest was not."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = ("mode", "cpu", "cuda", "compiler", "nvcc_version", "archs", "archs_left_out")
    shown = {key: PLAN[key] for key in keys if key in PLAN}
    Path(folder, "build_info.json").write_text(json.dumps(shown, indent=2) + "\n")


class BuildExt(build_ext):
    """Writes one ninja file for all modules and runs it."""

    def run(self) -> None:  # noqa: D102  # setuptools' own
        super().run()
        write_info(ROOT / "kdx_ext" if self.inplace else Path(self.build_lib, "kdx_ext"))

    def build_extensions(self) -> None:  # noqa: D102  # setuptools' own
        temp = Path(self.build_temp).resolve()
        temp.mkdir(parents=True, exist_ok=True)
        targets = {ext.name: Path(self.get_ext_fullpath(ext.name)).resolve() for ext in self.extensions}
        for target in targets.values():
            target.parent.mkdir(parents=True, exist_ok=True)
        Path(temp, "build.ninja").write_text(ninja_file(temp, targets))
        try:
            subprocess.run([str(PLAN["ninja"]), "-C", str(temp)], check=True)
        except subprocess.CalledProcessError as error:
            raise SystemExit(
                "kdx: compiling the native modules failed (see above); KDX_BUILD=none installs without them"
            ) from error


class BuildPy(build_py):
    """Notes in the package why there is no native module."""

    def run(self) -> None:  # noqa: D102  # setuptools' own
        super().run()
        write_info(ROOT / "kdx_ext" if self.editable_mode else Path(self.build_lib, "kdx_ext"))


setup(
    ext_modules=[Extension(f"kdx_ext._{kind}", []) for kind in ("cpu", "cuda") if PLAN[kind] is None],
    cmdclass={"build_ext": BuildExt, "build_py": BuildPy},
)
