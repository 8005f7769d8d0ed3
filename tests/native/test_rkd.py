"""What nvcc and Triton make of the relational kernels: nothing spilt, registers and instructions under a bound.

The innermost loop of the angle kernels is all their time: N^3 / 2 visits of a pair and a third point. 35 floating point
instructions are the arithmetic itself; the rest is loads and the loop.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.native import gates

ARCHS = (80, 90, 100)
CUDA = gates.ROOT / "csrc" / "cuda"

# kernel -> registers at most: 65536 / 256 threads / the blocks a multiprocessor shall hold
REGISTERS = {
    "rkd_measure_kernelILi1E": 64,
    "rkd_measure_kernelILi4E": 128,
    "pairwise_sq_dist_kernelILi1E": 64,
    "pairwise_sq_dist_kernelILi4E": 128,
    "rkd_distance_kernel": 40,
    "rkd_angle_kernelILi1ELb0E": 64,
    "rkd_angle_kernelILi1ELb1E": 64,
    "rkd_angle_kernelILi2ELb0E": 96,
    "rkd_angle_kernelILi2ELb1E": 96,
    "rkd_gradient_kernel": 80,
}


@pytest.fixture(scope="module", params=ARCHS, ids=[f"sm_{arch}" for arch in ARCHS])
def kernels(request):
    if gates.nvcc() is None:
        pytest.skip("no nvcc")
    found = {}
    for name in ("rkd_measure", "rkd_angle", "rkd_gradient"):
        for mangled, kernel in gates.cuda(CUDA / f"{name}.cu", request.param, sass=True).items():
            (key,) = (key for key in REGISTERS if key in mangled)
            found[key] = kernel
    return found


@pytest.mark.quick(kernels=[90])
def test_cuda_kernels_spill_nothing_and_stay_under_their_registers(kernels):
    assert kernels.keys() == REGISTERS.keys()
    assert {name: kernel.spill_bytes for name, kernel in kernels.items()} == dict.fromkeys(REGISTERS, 0)
    assert not {name: k.registers for name, k in kernels.items() if k.registers > REGISTERS[name]}


@pytest.mark.quick(kernels=[90])
@pytest.mark.parametrize(("name", "visits", "bound"), [("Li2ELb1E", 4, 39), ("Li1ELb1E", 4, 40), ("Li2ELb0E", 4, 16)])
def test_cuda_angle_loop_instructions_per_pair_and_point(kernels, name, visits, bound):
    loop = kernels[f"rkd_angle_kernelI{name}"].loops()[-1]  # after the two loops that stage the legs
    assert len(loop) / visits <= bound
    assert not [i.opcode for i in loop if i.opcode.startswith(("MUFU", "LDG", "STG", "LDL", "STL"))]


@pytest.mark.quick(kernels=[90])
def test_cuda_distance_loop_instructions_per_pair_and_coordinate(kernels):
    loops = kernels["rkd_measure_kernelILi4E"].loops()
    loop = max(loops, key=lambda body: sum(i.opcode == "FFMA" for i in body))
    assert sum(i.opcode == "FFMA" for i in loop) == 16 * 8  # pairs of a thread, coordinates of a run
    assert len(loop) / (16 * 8) <= 2.8


TRITON = """
import json, sys
from kdx.ops._rkd import triton_kernels
from tests.native import gates
f, i, x = "*fp32", "i32", "fp32"
arch = int(sys.argv[1])
angle = dict(s_i=f, t_i=f, s_j=f, t_j=f, v=f, losses=f, n=i, i0=i, ni=i, j0=i, nj=i, delta=x, scale=x)
measure = dict(student=f, s_stride_n=i, s_depth=i, teacher=f, t_stride_n=i, t_depth=i, s_square=f, t_square=f, sums=f,
               i0=i, ni=i, j0=i, nj=i)
sums = dict(s_square=f, t_square=f, size="i64", s_means=f, t_means=f, counts=i, out=f, delta=x, PER_PROGRAM=i)
gradient = dict(s_square=f, t_square=f, v_angle=f, stride_i=i, x=f, stride_n=i, depth=i, out=f, i0=i, ni=i, j0=i, nj=i,
                s_means=f, t_means=f, counts=i, sums=f, sum_count=i, angle_losses=f, angle_count=i, loss=f, delta=x,
                pairs=x, distance_weight=x, angle_scale=x)
rows = {}
def add(name, kernel, signature, constants, aligned, warps):
    built = gates.triton_kernel(kernel, signature, constants, arch, aligned=aligned, num_warps=warps)
    loops = [len(body) for body in built.loops()]
    rows[name] = dict(registers=built.registers, spill=built.spill_bytes, loop=max(loops))
k = triton_kernels
for tile, warps in ((16, 4), (32, 4)):
    add(f"angle {tile}", k.angle, angle, dict(SYMMETRIC=True, GRAD=True, TILE=tile), ("s_i", "t_i", "s_j", "t_j"),
        warps)
for tile, warps in ((16, 2), (32, 4)):
    add(f"measure {tile}", k.measure, measure,
        dict(s_stride_d=1, t_stride_d=1, SYMMETRIC=True, SUMS=True, TILE=tile, BD=8), ("student", "teacher"), warps)
add("distance_sums", k.distance_sums, sums, dict(BLOCK=1024), ("s_square", "t_square"), 4)
for rows_, width in ((16, 32), (32, 64)):
    add(f"gradient {rows_}", k.gradient, gradient,
        dict(stride_j=1, stride_d=1, DISTANCE=True, ANGLE=True, ACCUMULATE=False, LOSS=True, TI=rows_, TJ=32, BD=width,
             BLOCK=1024), ("x", "s_square", "t_square"), 4)
print(json.dumps(rows))
"""


@pytest.mark.quick(arch=[90])
@pytest.mark.parametrize("arch", ARCHS, ids=[f"sm_{arch}" for arch in ARCHS])
def test_triton_kernels_spill_nothing_and_stay_under_their_bounds(arch):
    pytest.importorskip("triton")
    if gates.cuobjdump() is None:
        pytest.skip("no cuobjdump")
    # A process of its own: in one where TRITON_INTERPRET is set the kernels are not compiled at all.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(gates.ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", TRITON, str(arch)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=Path(gates.ROOT),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert not {name: row for name, row in found.items() if row["spill"] != 0}
    assert not {name: row for name, row in found.items() if row["registers"] > 216}
    # Instructions per pair and point of the angle loop (2 and 8 pairs a thread; inverse roots are taken in it), and per
    # pair and coordinate of the distance loop (4 and 8 pairs, 8 coordinates).
    bounds = {"angle 16": 2 * 80, "angle 32": 8 * 72, "measure 16": 4 * 8 * 7, "measure 32": 8 * 8 * 6}
    assert not {name: found[name] for name, bound in bounds.items() if found[name]["loop"] > bound}
