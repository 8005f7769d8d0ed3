"""No two threads of a CUDA kernel touch the same memory unless a barrier, a cluster barrier or a fence orders them.

The kernels run in the emulation under ThreadSanitizer, for which every CUDA thread is one of its own. What it finds
depends on what orders the threads and not on which happens to run first; the order is reversed all the same.
"""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.emulation import harness, races


@pytest.fixture(scope="module")
def program():
    compiler = harness.compiler()
    if compiler is None:
        pytest.skip("no C++ compiler to build the emulation with")
    probe = [compiler, "-fsanitize=thread", "-x", "c++", "-", "-o", "/dev/null"]
    done = subprocess.run(probe, input="int main() {}", capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the compiler builds nothing with ThreadSanitizer: {done.stderr.strip()}")
    return races.program()


def test_a_place_that_is_not_there_or_not_alone_is_an_error():
    place = races.Place("a barrier", "none", "a.cu", "x;", "__syncthreads();", "y;")
    kept = {"a.cu": "x;__syncthreads();y;"}
    assert races.marked(kept, (place,)) == {"a.cu": "x;if (::kdx_left_out != 1) __syncthreads();y;"}
    for source in ("x;y;", 2 * kept["a.cu"]):
        with pytest.raises(ValueError, match=r"a barrier: expected its text once in a\.cu, found it"):
            races.marked({"a.cu": source}, (place,))


def test_every_kernel_is_run():
    run = (harness.HERE / "races.cpp").read_text()
    headers = "".join(p.read_text() for p in (harness.ROOT / "csrc" / "include").rglob("*.h"))
    launchers = set(re.findall(r"const char\* (\w+_cuda)\(", headers))
    assert len(launchers) >= 9
    assert {name for name in launchers if f"kdx::{name}(" not in run} == set()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_kernel_has_a_race_in_either_order(program):
    seen = []
    for order in ("forward", "reverse"):
        outcomes, reports = races.run(order, [(family, 0) for family in races.FAMILIES])
        assert "ThreadSanitizer" not in reports, reports[:6000]
        assert [outcome.errors for outcome in outcomes] == [()] * len(races.FAMILIES)
        assert all(outcome.calls for outcome in outcomes)
        seen.append(outcomes)
    assert seen[0] == seen[1]  # the same bits


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_kernel_without_any_one_of_its_barriers_and_fences_is_reported(program):
    outcomes, _ = races.run("forward", [(place.family, number) for number, place in enumerate(races.PLACES, 1)])
    reported = [any("ThreadSanitizer found a race" in error for error in outcome.errors) for outcome in outcomes]
    assert [place.name for place, found in zip(races.PLACES, reported, strict=True) if not found] == []
