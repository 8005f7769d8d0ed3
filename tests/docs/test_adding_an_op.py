"""The guide to a new op: its files are written to disk, compiled, and every backend passes the conformance kit."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kdx
from tests.emulation import harness

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "kernels" / "adding-an-op.md"
MODULE = """
#include <pybind11/pybind11.h>
void bind_scale(pybind11::module_& m);
PYBIND11_MODULE({name}, m) {{ bind_scale(m); }}
"""
CHECK = """
import importlib.util, sys
from kdx.ops import _declarations, _native
from kdx.ops._declarations import Op
import kdx.ops
folder, backend, compiled, *left_out = sys.argv[1:]
kdx.ops.__path__.append(f"{folder}/kdx/ops")
op = eval(open(f"{folder}/kdx/ops/_declarations.py").read())
_declarations.OPS[op.name] = op
from kdx.testing import OpTags, checks_of, op_subject
from kdx.testing.op_subject import draw
op_subject.OWN |= eval(open(f"{folder}/kdx/testing/op_subject.py").read())
import torch
x = torch.ones(2, 3)
assert kdx.ops.explain("scale", x).op == "scale"
def check():
    for each in checks_of("scale", backend=backend):
        if each.name not in left_out:
            each()
    found, module = kdx.ops.select("scale", backend, x)
    assert found == backend and module.forward(x, 2.5).eq(2.5).all()
if compiled:
    spec = importlib.util.spec_from_file_location(f"_{backend}", compiled)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with _native.override(backend, module):
        check()
else:
    check()
print("passed")
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the guide."""
    folder = tmp_path_factory.mktemp("guide")
    for name, text in re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', GUIDE.read_text(), re.DOTALL):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "kdx/ops/_scale/__init__.py").touch()
    return folder


@pytest.mark.parametrize(
    "left_out", [("operators", "compiles"), pytest.param((), marks=pytest.mark.slow)], ids=["eager", "whole"]
)
@pytest.mark.parametrize("backend", kdx.ops.BACKENDS)
def test_a_backend_of_the_guide_passes_the_conformance_kit(
    files: Path, backend: str, left_out: tuple[str, ...]
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    compiled = ""
    if backend == "triton":
        pytest.importorskip("triton")
        environment["TRITON_INTERPRET"] = "1"
    elif backend != "reference":
        if harness.compiler() is None:
            pytest.skip("no C++ compiler")
        (files / f"{backend}_module.cpp").write_text(MODULE.format(name=f"_{backend}"))
        kernel = files / f"csrc/{backend}/scale.{'cu' if backend == 'cuda' else 'cpp'}"
        sources = [kernel, files / f"csrc/bind/{backend}_scale.cpp", files / f"{backend}_module.cpp"]
        compiled = str(harness.module_file(sources, f"_{backend}", f"-I{files / 'csrc/include'}"))
    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(files), backend, compiled, *left_out],
        cwd=files,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip().endswith("passed"), done.stderr[-3000:]


def test_the_guide_names_every_step(files: Path) -> None:
    """Each declared family has the files of the guide's; one that runs on another's kernels has none of its own."""
    written = {path.name for path in (files / "kdx/ops/_scale").iterdir()}
    for folder in (ROOT / "kdx" / "ops").glob("_*/api.py"):
        launcher = (folder.parent / "triton.py").read_text()
        borrowed = {"triton_kernels.py"} if re.search(r"from kdx\.ops\._\w+ import triton\b", launcher) else set()
        assert written - borrowed <= {path.name for path in folder.parent.iterdir()}, folder.parent
    assert {path.name for path in (files / "csrc").iterdir()} == {"include", "cpu", "cuda", "bind"}
