"""Every op is declared once, and everything that goes by ops finds it there."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import bench.registry
import kdx
from kdx.ops import BACKENDS, OPS
from kdx.testing.op_subject import OWN
from tools.docs_pages import kernels

ROOT = Path(__file__).parents[2]
FAMILIES = [op.name for op in OPS.values() if op.family is None]


def test_the_declarations_import_no_torch():
    code = "import sys, kdx.builtin; assert kdx.builtin.kdx_ops(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("op", OPS)
def test_a_declared_op_is_public_listed_and_explained(op):
    assert OPS[op].name == op
    assert getattr(kdx.ops, op) is getattr(import_module(f"{OPS[op].folder}.api"), op)
    (found,) = kdx.plugins().components("op")[op]
    assert (found.spec.target, found.spec.summary, found.spec.paper) == (
        *(OPS[op].target, OPS[op].summary, OPS[op].paper),
    )
    plan = kdx.ops.explain(op, torch.zeros(2, 3), torch.zeros(2, 3))
    assert {plan.backend, *plan.reasons} == set(BACKENDS)
    assert op in OWN, "the conformance kit has to know on what it is tried"


def test_no_function_is_public_without_a_declaration():
    functions = {name for name in kdx.ops.__all__ if getattr(kdx.ops, name).__class__.__name__ == "function"}
    ops = {name for name in functions if getattr(kdx.ops, name).__module__.endswith(".api")}
    assert ops == OPS.keys()


def test_benchmarks_are_the_declared_ones():
    files = {path.stem for path in (ROOT / "bench" / "ops").glob("*.py")} - {"__init__"}
    assert set(bench.registry.names()) == files


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_its_folder_tests_and_page(family):
    folder = ROOT / "kdx" / "ops" / f"_{family}"
    assert {f"{name}.py" for name in ("api", *BACKENDS)} | {"README.md"} <= {path.name for path in folder.iterdir()}
    assert (ROOT / "tests" / "ops" / f"test_{family}.py").exists()
    assert f"kernels/{family}.md" in (ROOT / "mkdocs.yml").read_text()
    assert family in kernels()


def test_every_folder_is_declared():
    folders = {path.parent.name for path in (ROOT / "kdx" / "ops").glob("*/api.py")}
    assert folders == {f"_{family}" for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_backend_defines_what_the_choice_asks_for(family):
    for backend in BACKENDS:
        source = (ROOT / "kdx" / "ops" / f"_{family}" / f"{backend}.py").read_text()
        assert {"unsupported", "forward"} <= set(re.findall(r"^def (\w+)", source, re.MULTILINE))
