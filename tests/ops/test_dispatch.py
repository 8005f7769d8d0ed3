"""Who runs an op: auto, names, reasons, and backends added from outside."""

from __future__ import annotations

import subprocess
import sys
import types
from importlib import import_module
from pathlib import Path

import pytest
import torch

import kdx
from kdx import Spec, hookimpl
from kdx.errors import UnknownNameError
from kdx.ops import OPS, _dispatch, _native, _plugins

FAMILIES = [op.name for op in OPS.values() if op.family is None]
ROOT = Path(__file__).parents[2]
X = torch.zeros(2, 3)


def test_importing_kdx_ops_imports_no_torch():
    code = "import sys, kdx, kdx.ops; dir(kdx.ops); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_explain_names_the_choice_and_every_other_backends_reason():
    plan = kdx.ops.explain("softmax_kl", X, X)
    assert plan.backend == ("cpu" if kdx.ops.backends()["cpu"] is None else "reference")
    assert set(plan.reasons) == {"cuda", "triton", "cpu", "reference"} - {plan.backend}
    assert all(plan.reasons.values())
    assert str(plan).splitlines()[1:] == [f"  not {name}: {reason}" for name, reason in plan.reasons.items()]
    assert str(plan).splitlines()[0] == f"softmax_kl: {plan.backend}"
    assert _dispatch.select("softmax_kl", "auto", X, X)[0] == plan.backend


def test_explain_of_an_unknown_op_lists_the_known():
    with pytest.raises(UnknownNameError, match=r"there is no op 'softmax_k'; known are: kd_loss, .*softmax_kl"):
        kdx.ops.explain("softmax_k", X)
    with pytest.raises(ValueError, match="tensors: "):
        kdx.ops.explain("softmax_kl")


def test_backends_says_what_can_be_used_here():
    usable = kdx.ops.backends()
    assert list(usable) == ["cuda", "triton", "cpu", "reference"]
    assert usable["reference"] is None
    assert all(reason is None or reason for reason in usable.values())
    info = kdx.ops.build_info()
    assert (usable["cpu"] is None) == (info["cpu"] is None)


@pytest.fixture
def fresh():
    """Choices and backends of plugins are forgotten afterwards."""
    yield
    _plugins._forget()


@pytest.fixture
def mine(fresh, plugged, monkeypatch):
    """``mine(**functions)``: a plugin with a backend ``mine`` of softmax_kl that has these functions."""

    def add(**functions):
        module = types.ModuleType("mine")
        vars(module).update({"forward": lambda *arguments: (torch.tensor(42.0), None)} | functions)
        monkeypatch.setitem(sys.modules, "mine", module)
        plugin = types.ModuleType("kdx_mine")
        plugin.kdx_ops = hookimpl(lambda: [Spec("softmax_kl/mine", "mine", "42")], specname="kdx_ops")
        plugged(plugin, "mine")

    return add


def test_a_backend_added_from_outside_is_asked_first_and_explained(mine):
    mine(unsupported=lambda student, teacher: None if student.dtype == torch.float64 else "float64 only")
    assert kdx.ops.softmax_kl(X.double(), X.double()).item() == 42
    assert kdx.ops.softmax_kl(X, X).item() == 0
    assert kdx.ops.explain("softmax_kl", X, X).reasons["mine"] == "float64 only"
    assert kdx.ops.explain("softmax_kl", X.double(), X.double()).backend == "mine"
    with pytest.raises(kdx.errors.BackendError, match="backend='mine' cannot run softmax_kl here: float64 only"):
        kdx.ops.softmax_kl(X, X, backend="mine")


@pytest.mark.parametrize("answer", [True, False, 1])
def test_a_backend_that_answers_with_no_reason_is_told_what_is_expected(mine, answer):
    mine(unsupported=lambda student, teacher: answer)
    message = f"mine.unsupported: expected a reason as text, or None .* got {answer}"
    for backend in ("mine", "auto"):
        with pytest.raises(kdx.errors.PluginError, match=message):
            kdx.ops.softmax_kl(X, X, backend=backend)
    assert "expected a reason" in kdx.ops.explain("softmax_kl", X, X).reasons["mine"]


@pytest.mark.parametrize(
    ("takes", "first", "then"),
    [
        (lambda student, teacher: teacher.dtype == torch.float64, (X, X.double()), (X, X)),
        (lambda student, teacher: len(student) == 2, (X, X), (X[:1], X[:1])),
        (lambda student, teacher: not student.requires_grad, (X, X), (X.clone().requires_grad_(), X)),
    ],
    ids=["the second tensor's dtype", "the number of rows", "whether a gradient is wanted"],
)
def test_a_choice_is_made_anew_where_a_backend_from_outside_may_choose_otherwise(mine, takes, first, then):
    mine(unsupported=lambda *tensors: None if takes(*tensors) else "not these")
    for _ in range(2):
        for tensors in (first, then):
            expected = kdx.ops.explain("softmax_kl", *tensors).backend
            assert _dispatch.select("softmax_kl", "auto", *tensors)[0] == expected
    assert _dispatch.select("softmax_kl", "mine", *first)[0] == "mine"
    with pytest.raises(kdx.errors.BackendError, match="not these"):
        _dispatch.select("softmax_kl", "mine", *then)


def test_a_choice_is_kept_for_the_dtypes_of_all_tensors(fresh):
    for teacher in (X, X.double(), X.bool(), X):
        found = kdx.ops.explain("rkd", X, teacher).backend
        assert _dispatch.select("rkd", "auto", X, teacher)[0] == found


def test_a_choice_is_kept_for_one_device_and_not_for_its_kind(fresh, monkeypatch):
    capability = {0: (7, 5), 1: (8, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[device.index])
    monkeypatch.setattr(_native, "compiled", lambda kind: (types.ModuleType(kind), ""))
    monkeypatch.setattr(_dispatch, "_has_triton", lambda: False)
    for index, expected in ((0, "reference"), (1, "cuda"), (0, "reference")):
        tensor = types.SimpleNamespace(device=torch.device("cuda", index), dtype=torch.float32)
        assert _dispatch.select("softmax_kl", "auto", tensor, tensor)[0] == expected


def test_a_choice_among_the_built_in_backends_is_made_once(fresh, monkeypatch):
    kept = _dispatch.select("softmax_kl", "auto", X, X)
    monkeypatch.setattr(_dispatch, "_select", lambda *arguments: pytest.fail("chosen anew"))
    assert _dispatch.select("softmax_kl", "auto", X[:1], X[:1]) == kept


def test_ops_import_each_other_one_way():
    """The relational losses are built on the squared distances, whose folder knows nothing of them."""
    for path in (ROOT / "kdx" / "ops" / "_pairwise_sq_dist").glob("*.py"):
        assert "rkd" not in "".join(line for line in path.read_text().splitlines() if "import" in line), path


@pytest.mark.parametrize("backend", ["cpu", "cuda", "triton"])
@pytest.mark.parametrize("op", FAMILIES)
def test_a_launcher_names_the_dtype_that_it_has_no_kernel_for(op, backend):
    if backend == "triton":
        pytest.importorskip("triton")
    module = import_module(f"kdx.ops._{op}.{backend}")
    with_double = (backend == "cuda" and op in ("softmax_kl", "linear_kl", "topk_kl")) or backend == "cpu"
    assert module.unsupported(X.half(), X.half()) is None
    reason = module.unsupported(X.double(), X.double())
    assert reason is None if with_double else "no float64 kernel; the backends cpu" in reason
    assert module.unsupported(X.to(torch.float8_e5m2), X) == "no float8_e5m2 kernel"
