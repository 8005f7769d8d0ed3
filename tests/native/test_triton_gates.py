"""The shipped Triton shapes of softmax_kl compile for every architecture without spills and within their budgets."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.native import gates

pytest.importorskip("triton")

if gates.cuobjdump() is None:
    pytest.skip("no cuobjdump in the CUDA toolkit or the Triton wheel", allow_module_level=True)

# Instructions for each bf16 class, forward and gradient, everything included. An H100 issues about 59 in the time its
# memory needs for one; beyond that the instructions, not the memory, are the limit.
RESIDENT_BUDGET = {0: 120, 2: 220}
LOOP_BUDGET = {0: 42, 1: 42, 2: 115}  # of one pass


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return _report("triton_report", tmp_path_factory)


def _report(module, tmp_path_factory):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    command = [sys.executable, "-m", f"tests.native.{module}"]
    done = subprocess.run(command, cwd=gates.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_nothing_spills_and_two_programs_fit_on_a_multiprocessor(report):
    assert {case["case"][0] for case in report} == {80, 90, 100}
    for case in report:
        assert case["spill_bytes"] == 0, case
        warps = 16 if case["case"][2] == 8192 else 8 if case["case"][2] > 2048 else 4
        assert case["registers"] * 32 * warps * (2 if warps < 16 or case["case"][3] == 0 else 1) <= 65536, case


@pytest.mark.slow
def test_rows_are_read_and_written_sixteen_bytes_at_a_time(report):
    for case in report:
        if case["case"][3] == 0 and case["case"][5] in (None, "ALL"):
            assert case["wide_loads"] >= 2, case
            assert case["wide_stores"] >= 1, case


@pytest.mark.slow
def test_instructions_a_class_stay_within_the_budget(report):
    for case in report:
        _, kernel, _, divergence, labels, _ = case["case"]
        if kernel == "resident":
            extra = 30 if labels else 0
            assert case["a_class"] <= RESIDENT_BUDGET[divergence] + extra, case
            assert case["exponentials_a_class"] <= (3 if divergence == 0 else 5) + 2 * labels, case
        else:
            assert case["loops_a_class"], case
            assert max(case["loops_a_class"]) <= LOOP_BUDGET[divergence] + (12 if labels else 0), case


@pytest.mark.slow
def test_the_sweeps_of_topk_kl_read_and_write_sixteen_bytes_at_a_time_without_spills(tmp_path_factory):
    found = _report("topk_triton_report", tmp_path_factory)
    assert {case["case"][0] for case in found} == {80, 90, 100}
    for case in found:
        _, kernel, _, labels = case["case"]
        assert case["spill_bytes"] <= (8 if kernel == "sums_kernel" and labels else 0), case  # a number of the row
        assert case["registers"] <= 80, case
        assert case["wide_loads"] >= 2, case
        assert case["wide_stores"] >= (2 if kernel == "gradient_kernel" else 0), case
