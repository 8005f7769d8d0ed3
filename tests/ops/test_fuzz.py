"""Random cases of all ops against 80 digits: a fresh seed each time, KDX_FUZZ_SEED=… repeats one."""

from __future__ import annotations

import os
import secrets

import pytest

from tests.ops import fuzz

CASES = int(os.environ.get("KDX_FUZZ_CASES", "1000"))  # of each family


@pytest.mark.slow
def test_every_backend_of_a_cpu_gives_the_truth(require):
    require("softmax_kl", "cpu")
    seed = int(os.environ.get("KDX_FUZZ_SEED") or secrets.randbelow(10**9))
    print(f"KDX_FUZZ_SEED={seed}")
    found = fuzz.problems(seed, CASES, ["cpu", "reference"])
    assert not found, f"KDX_FUZZ_SEED={seed}\n" + "\n".join(found)
