"""Compiles the Triton kernels of topk_kl and prints what came out as JSON; run by test_triton_gates.py.

It runs in a process of its own because a process that has TRITON_INTERPRET=1 can only interpret kernels.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from kdx.ops._topk_kl import triton_kernels as kernels
from tests.native import gates

_TYPES = {
    **{"student": "*bf16", "grad": "*bf16", "ids": "*i64", "labels": "*i64", "counts": "*i1", "K": "i32", "C": "i32"},
    **{"row_stride": "i32", "temperature": "fp32", "exponent": "fp32"},
}
_BLOCK, _WARPS = 4096, 8


def compile_case(arch: int, name: str, *, bucket: bool, labels: bool) -> dict[str, Any]:
    function = getattr(kernels, name)
    constants: dict[str, Any] = {"BLOCK": _BLOCK, "K_BLOCK": 32, "WITHOUT": bucket, "AT_1": labels, "CE": labels}
    if not labels:
        constants |= {"total_1": None, "ce_rows": None, "labels": None}
    constants = {key: value for key, value in constants.items() if key in function.arg_names}
    types = {key: _TYPES.get(key, "*fp32") for key in function.arg_names}
    aligned = [key for key in ("student", "grad", "row_stride", "C") if key in function.arg_names]
    made = gates.triton_kernel(function, types, constants, arch, aligned=aligned, num_warps=_WARPS)
    return {
        "case": [arch, name, bucket, labels],
        "registers": made.registers,
        "spill_bytes": made.spill_bytes,
        "wide_loads": made.count("LDG.E.128"),
        "wide_stores": made.count("STG.E.128"),
    }


if __name__ == "__main__":
    found = [
        compile_case(arch, name, bucket=bucket, labels=labels)
        for arch, bucket, labels in ((80, True, False), (90, True, True), (90, False, False), (100, True, False))
        for name in ("sums_kernel", "gradient_kernel")
    ]
    json.dump(found, sys.stdout)
