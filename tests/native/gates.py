"""What the compilers make of a kernel, read without a GPU: registers, spills, instructions.

CUDA sources go through nvcc, Triton kernels through `triton.compile` with a `GPUTarget`; SASS is read with the
cuobjdump of the CUDA toolkit or, failing that, of the Triton wheel.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
GENCODE = {
    80: "-gencode=arch=compute_80,code=sm_80",
    90: "-gencode=arch=compute_90a,code=sm_90a",
    100: "-gencode=arch=compute_100,code=sm_100",
}


@dataclass(frozen=True)
class Instruction:
    address: int
    opcode: str
    text: str


@dataclass
class Kernel:
    """One compiled kernel: registers a thread, bytes spilt, and its SASS where it was asked for."""

    registers: int
    spill_bytes: int
    sass: list[Instruction] = field(default_factory=list, repr=False)

    def loops(self) -> list[list[Instruction]]:
        """The innermost loops, in the order of the code."""
        spans = []
        for instruction in self.sass:
            target = re.search(r"\bBRA(?:\.\w+)*\s.*?0x([0-9a-f]+)", instruction.text)
            if target and int(target[1], 16) < instruction.address:
                spans.append((int(target[1], 16), instruction.address))
        inner = [s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
        return [[i for i in self.sass if start <= i.address <= end] for start, end in sorted(inner)]

    def count(self, *prefixes: str) -> int:
        """How many instructions have an opcode that starts with one of the prefixes (all: no prefix)."""
        return sum(not prefixes or i.opcode.startswith(prefixes) for i in self.sass)


def nvcc() -> str | None:
    """The CUDA compiler, or None when there is none (the caller skips with that reason)."""
    return shutil.which("nvcc")


def _triton_tool(name: str) -> str | None:
    try:
        import triton.backends.nvidia as nvidia
    except ImportError:
        return None
    path = Path(nvidia.__file__).parent / "bin" / name
    return str(path) if path.exists() else None


def cuobjdump() -> str | None:
    """A cuobjdump, or None."""
    return shutil.which("cuobjdump") or _triton_tool("cuobjdump")


def _disassemble(cubin: Path) -> dict[str, list[Instruction]]:
    tool = cuobjdump()
    assert tool is not None, "no cuobjdump in the CUDA toolkit or the Triton wheel"
    listing = subprocess.run([tool, "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
    functions: dict[str, list[Instruction]] = {}
    for line in listing.splitlines():
        if header := re.match(r"\s*Function : (\S+)", line):
            functions[header[1]] = current = []
        elif code := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(.*?);", line):
            opcode = re.sub(r"^@!?U?P\w+\s+", "", code[2]).split()[0]
            if opcode != "NOP":
                current.append(Instruction(int(code[1], 16), opcode, code[2]))
    return functions


def cuda(source: Path, arch: int, defines: Sequence[str] = (), sass: bool = False) -> dict[str, Kernel]:
    """Compile one .cu for one architecture (80, 90 as 90a, 100); mangled kernel name -> Kernel. Warnings are errors."""
    report, cubin = _compiled(source, arch, defines)
    code = _disassemble(cubin) if sass else {}
    kernels = {}
    for block in report.split("Compiling entry function ")[1:]:
        name = block[1 : block.index("'", 1)]
        used = re.search(r"Used (\d+) registers", block)
        spilt = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", block)
        assert used, block
        assert spilt, block
        kernels[name] = Kernel(int(used[1]), int(spilt[1]) + int(spilt[2]), code.get(name, []))
    return kernels


def _compiled(source: Path, arch: int, defines: Sequence[str]) -> tuple[str, Path]:
    """What ptxas says of a source, and its cubin; of the workers of a session one compiles, and the others read."""
    gpu_compiler = nvcc()
    assert gpu_compiler is not None, "no nvcc"
    command = [gpu_compiler, "-std=c++17", "-O3", "-cubin", GENCODE[arch], "-Werror=all-warnings", "-Xptxas=-v"]
    command += [f"-D{define}" for define in defines]
    command += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'include'}", str(source)]
    version = subprocess.run([gpu_compiler, "--version"], capture_output=True, text=True, check=True).stdout
    digest = hashlib.sha256("\0".join([*command, version]).encode())
    for path in [source, *sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".cuh"})]:
        digest.update(path.read_bytes())
    folder = ROOT / "build" / "gates" / f"{source.stem}-{arch}-{digest.hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    report, cubin = folder / "ptxas.txt", folder / "kernels.cubin"
    with FileLock(folder / ".lock"):
        if not report.exists():
            done = subprocess.run([*command, "-o", str(cubin)], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
            unfinished = report.with_suffix(".part")
            unfinished.write_text(done.stderr)
            unfinished.replace(report)
    return report.read_text(), cubin


def triton_kernel(
    function: Any,
    signature: dict[str, str],
    constants: dict[str, Any],
    arch: int,
    aligned: Sequence[str] = (),
    **options: Any,
) -> Kernel:
    """Compile one Triton kernel for one architecture.

    signature: argument -> "*bf16", "i64", "fp32" ... (not those in `constants`); aligned: the arguments taken to be
    divisible by 16, as the launcher sees them for aligned tensors; options: num_warps, num_stages ...
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(function.arg_names)
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    types = {name: "constexpr" if name in constants else signature[name] for name in names}
    source = ASTSource(fn=function, signature=types, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        tool = cuobjdump()
        assert tool is not None, "no cuobjdump in the CUDA toolkit or the Triton wheel"
        usage = subprocess.run([tool, "-res-usage", str(cubin)], capture_output=True, text=True, check=True).stdout
        code = _disassemble(cubin)
    registers, stack, local = re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", usage).groups()  # type: ignore[union-attr]
    (instructions,) = code.values()
    return Kernel(int(registers), int(stack) + int(local), instructions)
