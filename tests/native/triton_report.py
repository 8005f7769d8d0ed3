"""Compiles the shipped Triton shapes of softmax_kl and prints what came out as JSON; run by test_triton_gates.py.

It runs in a process of its own because a process that has TRITON_INTERPRET=1 can only interpret kernels.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from kdx.ops._softmax_kl import triton as launcher
from kdx.ops._softmax_kl import triton_kernels as kernels
from tests.native import gates

_FP32 = ("loss", "partial", "kl_rows", "ce_rows", "statistics", "totals")
_FACTORS = ("inverse", "exponent", "beta", "kl_scale", "ce_scale")
_LOGITS = ("student", "teacher", "grad")

# (kernel, classes, divergence, labels, phase): the ends of the table, the heaviest divergence and each phase once
CASES = {
    90: [
        ("resident", 128, 0, False, None),
        ("resident", 1000, 0, True, None),
        ("resident", 4096, 0, False, None),
        ("resident", 8192, 0, False, None),
        ("resident", 8192, 2, False, None),
        ("loop", 32000, 0, False, "ALL"),
        ("loop", 128256, 1, False, "STATISTICS"),
        ("loop", 128256, 2, True, "LOSS"),
        ("loop", 128256, 2, False, "GRADIENT"),
    ],
    80: [("resident", 8192, 0, False, None), ("loop", 32000, 0, False, "ALL")],
    100: [("resident", 8192, 0, False, None), ("loop", 32000, 0, False, "ALL")],
}


def _type(name: str, logits: str) -> str:
    if name in _LOGITS:
        return f"*{logits}"
    if name in _FACTORS:
        return "fp32"
    return {"ticket": "*i32", "labels": "*i64"}.get(name, "*fp32" if name in _FP32 else "i32")


def compile_case(
    arch: int, kernel: str, classes: int, divergence: int, labels: bool, phase: str | None
) -> dict[str, Any]:
    shape = launcher.shape_for(classes)
    function = getattr(kernels, f"{kernel}_kernel")
    constants: dict[str, Any] = {
        "ROWS": shape.rows, "BLOCK": shape.block, "PACK": 8, "DIVERGENCE": divergence, "KL_ROWS": False,
        "LABELS": labels, "GRAD": True, "REDUCE": True, "APART": False,
        "STAND_IN": False, "S1": True, "T1": True, "G1": True,
        "kl_rows": None, "ce_losses": None,
    }  # fmt: skip
    if not labels:
        constants |= {"labels": None, "ce_rows": None}
    if phase is not None:
        splits_2 = 1 << (shape.splits - 1).bit_length()
        constants |= {"PHASE": getattr(kernels, phase).value, "SPLITS": shape.splits, "SPLITS_2": splits_2}
    if phase == "ALL":
        constants |= {"statistics": None, "totals": None}
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    types = {name: _type(name, "bf16") for name in function.arg_names}
    compiled = gates.triton_kernel(function, types, constants, arch, aligned=_LOGITS, num_warps=shape.warps)
    a_thread = shape.rows * shape.block / (32 * shape.warps)  # classes of a tile
    loops = sorted((len(loop) / a_thread for loop in compiled.loops()), reverse=True)
    return {
        "case": [arch, kernel, classes, divergence, labels, phase],
        "registers": compiled.registers,
        "spill_bytes": compiled.spill_bytes,
        "a_class": compiled.count() / a_thread,
        "loops_a_class": [loop for loop in loops if loop > 4],  # the rest adds up the programs' shares
        "exponentials_a_class": compiled.count("MUFU") / a_thread,
        "wide_loads": compiled.count("LDG.E.128"),
        "wide_stores": compiled.count("STG.E.128"),
    }


if __name__ == "__main__":
    json.dump([compile_case(arch, *case) for arch, cases in CASES.items() for case in cases], sys.stdout)
