"""The relational losses where memory ends: an error that says so, whichever allocation it is. A library that is loaded
before libc lets them fail in turn."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

SHIM = """
#include <stdlib.h>
static int left = -1;
void allow(int count) { left = count; }
void* aligned_alloc(size_t alignment, size_t size) {
  void* memory = 0;
  if (size >= 4096 && left >= 0 && left-- == 0) return 0;  /* smaller ones are OpenMP's */
  return posix_memalign(&memory, alignment, size) == 0 ? memory : 0;
}
"""

# Memory is kept from call to call, so that each call comes one allocation further than the one before.
CALLS = """
import ctypes, sys, torch
from importlib import import_module
cpu, allow = import_module("kdx.ops._rkd.cpu"), ctypes.CDLL(sys.argv[1]).allow
student, teacher = torch.randn(2, 300, 2000)
failed = 0
while True:
    allow(1)
    try:
        cpu.forward(student, teacher, 1.0, 1.0, 1.0, True, False)
        break
    except RuntimeError as error:
        assert str(error) == "rkd: out of memory", error
        failed += 1
print(failed)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or shutil.which("gcc") is None, reason="needs Linux and gcc")
@pytest.mark.parametrize("isa", ["base", "amx"])  # the best there is, where there is no AMX
def test_running_out_of_memory_is_an_error_whichever_allocation_fails(require, tmp_path, isa):
    """An exception must not leave a parallel region: the process would end there."""
    require("rkd", "cpu")
    source, library = tmp_path / "shim.c", tmp_path / "shim.so"
    source.write_text(SHIM)
    subprocess.run(["gcc", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    done = subprocess.run(
        [sys.executable, "-c", CALLS, str(library)],
        env=os.environ | {"LD_PRELOAD": str(library), "KDX_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >= 5
