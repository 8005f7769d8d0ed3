"""Which command runs a test: the marks quick, slow and soak."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[1]
TESTS = """
import pytest

@pytest.fixture(params=["reference", "triton"])
def backend_name(request): return request.param

@pytest.mark.quick(backend="triton", std=[3.0])
@pytest.mark.parametrize("std", [3.0, 30.0])
def test_sweep(backend_name, std): pass

@pytest.mark.quick(backend="triton")
def test_never_in_triton(backend_name): pass

@pytest.mark.quick(size=[1, 2])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_sizes(size): pass

@pytest.mark.slow
def test_slow(): pass

@pytest.mark.slow
@pytest.mark.soak
def test_soak(): pass
"""
QUICK = {
    *("test_sweep[reference-3.0]", "test_sweep[reference-30.0]", "test_sweep[triton-3.0]"),
    *("test_never_in_triton[reference]", "test_sizes[1]", "test_sizes[2]"),
}
SLOW = {"test_sweep[triton-30.0]", "test_never_in_triton[triton]", "test_sizes[3]", "test_slow"}


def expressions() -> dict[str, str]:
    """Target of the Makefile -> what it gives pytest as -m."""
    rules = re.split(r"\n(?=[\w-]+:)", (ROOT / "Makefile").read_text())
    found = {rule.partition(":")[0]: re.search(r"pytest .*-m (?:\"([^\"]+)\"|(\w+))", rule) for rule in rules}
    return {target: match[1] or match[2] for target, match in found.items() if match}


@pytest.mark.parametrize(("target", "run"), [("test", QUICK), ("test-slow", SLOW), ("soak", {"test_soak"})])
def test_every_test_belongs_to_one_command(target: str, run: set[str], pytester: pytest.Pytester) -> None:
    pytester.makeconftest("from tests.conftest import pytest_itemcollected")
    pytester.makeini("[pytest]\nmarkers =\n  quick\n  slow\n  soak")
    pytester.syspathinsert(ROOT)
    pytester.makepyfile(TESTS)
    passed, *others = pytester.inline_run("--strict-markers", "-m", expressions()[target]).listoutcomes()
    assert others == [[], []]
    assert {report.nodeid.partition("::")[2] for report in passed} == run


def test_ci_runs_both_commands() -> None:
    assert {"make test", "make test-slow"} <= set((ROOT / ".ci" / "run").read_text().splitlines())
