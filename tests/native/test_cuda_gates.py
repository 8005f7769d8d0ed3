"""nvcc compiles softmax_kl and topk_kl without spills, within their registers and instructions."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.native import gates

if gates.nvcc() is None:
    pytest.skip("nvcc is not on PATH", allow_module_level=True)

SOURCES = gates.ROOT / "csrc" / "cuda"
# One element type stands for the others here; building the CUDA module compiles them all.
GATED = [("softmax_kl_bf16.cu", arch) for arch in gates.GENCODE] + [("scale_grad.cu", 90), ("topk_kl.cu", 90)]
REGISTERS = {
    "sums_kernel": 40,
    "gradient_kernel": 40,
    "lanes_kernel": 168,
    "block_kernel": 128,
    "cluster_kernel": 80,
    "scale": 40,
}
# Instructions for each bf16 class in the sweeps of the cluster kernel as compiled, forward KL; they include the partial
# chunks at the ends of a row and the cross-entropy, which most chunks jump over.
SWEEPS = {"maxima": 3, "sums": 29, "loss and gradient": 66}


@pytest.fixture(scope="module")
def compiled():
    with ThreadPoolExecutor(max_workers=2) as pool:
        jobs = {
            (name, arch): pool.submit(
                gates.cuda, SOURCES / name, arch, (), arch == 90 and gates.cuobjdump() is not None
            )
            for name, arch in GATED
        }
        return {key: job.result() for key, job in jobs.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arch"), GATED, ids=[f"{name}-sm_{arch}" for name, arch in GATED])
def test_no_kernel_spills_and_each_keeps_its_registers(compiled, name, arch):
    kernels = compiled[name, arch]
    assert len(kernels) >= (18 if name.startswith("softmax_kl") else 8)
    for kernel, made in kernels.items():
        bound = next(registers for part, registers in REGISTERS.items() if part in kernel)
        assert made.spill_bytes == 0, kernel
        assert made.registers <= bound, f"{kernel} uses {made.registers} registers"


@pytest.mark.slow
@pytest.mark.skipif(gates.cuobjdump() is None, reason="no cuobjdump in the CUDA toolkit or the Triton wheel")
def test_the_sweeps_of_a_row_in_shared_memory_stay_within_their_instructions(compiled):
    kernels = compiled["softmax_kl_bf16.cu", 90]
    (cluster,) = (made for kernel, made in kernels.items() if "cluster_kernel" in kernel and "Li0E" in kernel)
    sweeps = {}
    for loop in cluster.loops():
        opcodes = [i.opcode for i in loop]
        exponentials = sum(o.startswith("MUFU.EX2") for o in opcodes)
        if any(o.startswith(("HMNMX2", "VHMNMX")) for o in opcodes):
            sweeps["maxima"] = loop
        elif exponentials and any(o.startswith("STG") for o in opcodes):
            sweeps["loss and gradient"] = loop
        elif exponentials:
            sweeps["sums"] = loop
    assert sweeps.keys() == SWEEPS.keys()
    for name, loop in sweeps.items():
        assert len(loop) / 8 <= SWEEPS[name], name
        # Two exponentials a class, one more where there is a cross-entropy.
        assert sum(i.opcode.startswith("MUFU.EX2") for i in loop) == (0 if name == "maxima" else 24), name


def test_the_launchers_and_the_example_of_the_emulation_compile():
    for source in (SOURCES / "softmax_kl.cu", gates.ROOT / "tests" / "emulation" / "example.cu"):
        gates.cuda(source, 90)


def test_no_native_source_needs_torch():
    sources = [p for p in gates.ROOT.glob("csrc/**/*") if p.suffix in {".cu", ".cuh", ".h", ".cpp"}]
    assert sources
    for path in sources:
        assert not re.search(r"#include\s*[<\"](torch|ATen|c10)/", path.read_text()), path
