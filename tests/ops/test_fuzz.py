"""Random cases of all ops against 80 digits; KDX_FUZZ_SEED takes others, ``fresh`` new ones each time."""

from __future__ import annotations

import os
import secrets

import pytest

from tests.ops import fuzz

CASES = int(os.environ.get("KDX_FUZZ_CASES", "700"))  # of each family


@pytest.mark.slow
def test_every_backend_of_a_cpu_gives_the_truth(require):
    require("softmax_kl", "cpu")
    given = os.environ.get("KDX_FUZZ_SEED", "37086916")
    seed = secrets.randbelow(10**9) if given == "fresh" else int(given)
    print(f"KDX_FUZZ_SEED={seed}")
    found = fuzz.problems(seed, CASES, ["cpu", "reference"])
    assert not found, f"KDX_FUZZ_SEED={seed}\n" + "\n".join(found)
