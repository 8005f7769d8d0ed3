"""The host's exp, expm1 and log1p of csrc/common/elementary.h, in ulp against numpy in long double."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SOURCE = """
#include "common/elementary.h"
#define MAP(name, f, T) \\
  extern "C" void name(const T* x, T* y, long n) { for (long i = 0; i < n; ++i) y[i] = kdx::f(x[i]); }
MAP(exp_f, exp_, float) MAP(exp_d, exp_, double)
MAP(nonpositive_f, exp_nonpositive, float) MAP(nonpositive_d, exp_nonpositive, double)
MAP(expm1_f, expm1_, float) MAP(expm1_d, expm1_, double)
MAP(log1p_f, log1p_, float) MAP(log1p_d, log1p_, double)
"""
FLAGS = ["-std=c++17", "-O3", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]


@pytest.fixture(scope="module", params=["plain", "fma"])
def library(request, tmp_path_factory):
    """Compiled for plain x86-64 and, where this machine can run it, with AVX2 and FMA."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    extra = []
    if request.param == "fma":
        info = Path("/proc/cpuinfo")
        if not info.exists() or not {"avx2", "fma"} <= set(info.read_text().split()):
            pytest.skip("this machine has no AVX2 with FMA")
        extra = ["-mavx2", "-mfma"]
    folder = tmp_path_factory.mktemp("elementary")
    (folder / "elementary.cpp").write_text(SOURCE)
    out = folder / "elementary.so"
    includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc/include'}"]
    subprocess.run(["g++", *FLAGS, *extra, *includes, str(folder / "elementary.cpp"), "-o", str(out)], check=True)
    return ctypes.CDLL(str(out))


def apply(library, name, x):
    x = np.ascontiguousarray(x)
    y = np.full_like(x, np.nan)
    call = getattr(library, f"{name}_{'f' if x.dtype == np.float32 else 'd'}")
    call(x.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p), ctypes.c_long(x.size))
    return y


def grid(dtype, low, high):
    """Both ends, many numbers between them, and many close to zero."""
    near = np.geomspace(1e-30, min(abs(low) or high, abs(high) or -low), 20001)
    x = np.concatenate([np.linspace(low, high, 200001), near, -near]).astype(dtype)
    return x[(x >= low) & (x <= high)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("name", "truth", "low", "high"),
    [
        ("exp", np.exp, -87.0, 88.0),
        ("nonpositive", np.exp, -86.0, 0.0),
        ("expm1", np.expm1, -87.0, 88.0),
        ("log1p", np.log1p, -0.9999, 1e6),
    ],
)
def test_errors_are_below_two_ulp(library, name, truth, low, high, dtype):
    x = grid(dtype, low, high)
    want = truth(x.astype(np.longdouble))
    error = np.abs(apply(library, name, x).astype(np.longdouble) - want) / np.spacing(np.abs(want.astype(dtype)))
    assert error.max() < 2.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_ends_of_the_line(library, dtype):
    inf, nan = dtype(np.inf), dtype(np.nan)
    x = np.array([-inf, inf, nan, 0.0, -1e30, 1e30], dtype)
    np.testing.assert_array_equal(apply(library, "exp", x), np.array([0, inf, nan, 1, 0, inf], dtype))
    np.testing.assert_array_equal(apply(library, "expm1", x), np.array([-1, inf, nan, 0, -1, inf], dtype))
    below = np.array([-inf, nan, 0.0, -1e30], dtype)
    np.testing.assert_array_equal(apply(library, "nonpositive", below), np.array([0, nan, 1, 0], dtype))
    np.testing.assert_array_equal(apply(library, "log1p", np.array([0.0, nan], dtype)), np.array([0, nan], dtype))
