"""Kernels of anyone: a backend or a whole new op comes through ``kdx_ops`` and is held to the reference."""

from __future__ import annotations

import sys
import types

import pytest
import torch

import kdx
from kdx import Spec, hookimpl
from kdx.errors import BackendError, PluginError, PluginWarning
from kdx.ops import _dispatch, _plugins
from kdx.ops._softmax_kl import reference
from kdx.registry import Plugins
from kdx.testing import CheckFailed, OpTags, check_op, check_plugin, checks_of
from tests.testing import kernels

X, Y = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), torch.zeros(4, 5)


@pytest.fixture
def module(monkeypatch):
    """``module(name, **functions)``: a module of that name; a backend without defects where none are given."""

    def make(name, **functions):
        found = types.ModuleType(name)
        found.__dict__.update(
            {"unsupported": lambda *tensors: None, "forward": kernels.sound, "scale_grad": reference.scale_grad}
        )
        found.__dict__.update(functions)
        monkeypatch.setitem(sys.modules, name, found)
        return name

    return make


@pytest.fixture
def install(monkeypatch):
    """``install(*specs, name=...)``: a plugin that lists these kernels, in a registry of its own."""
    plugins = Plugins(entries=(), blocked=(), trace=False)
    monkeypatch.setattr("kdx.registry.default_plugins", lambda: plugins)
    for user in ("kdx.testing.op_subject", "kdx.testing.parametrize"):
        monkeypatch.setattr(f"{user}.default_plugins", lambda: plugins)
    monkeypatch.setattr("kdx.ops._plugins._watched", [])
    monkeypatch.setattr("kdx.ops._plugins._read", None)

    def add(*specs, name="kernels"):
        class Kernels:
            @hookimpl
            def kdx_ops(self):
                return list(specs)

        plugins.register(Kernels(), name)

    _dispatch.forget()
    yield add
    monkeypatch.undo()
    _plugins._forget()


def test_a_backend_of_a_plugin_is_loaded_when_it_is_used_and_explained(install, module) -> None:
    loaded = []
    name = module(
        "kdx_test_fast",
        unsupported=lambda s, t: loaded.append(1) or (None if s.dtype == torch.float64 else "float64 only"),
    )
    install(Spec("softmax_kl/fast", name, "a fast one"))
    assert kdx.ops.softmax_kl(X, Y, backend="reference") > 0
    assert not loaded
    assert kdx.ops.softmax_kl(X.double(), Y.double(), backend="fast") > 0
    assert loaded
    assert kdx.ops.explain("softmax_kl", X.double(), Y.double()).backend == "fast"
    assert kdx.ops.explain("softmax_kl", X, Y).reasons["fast"] == "float64 only"
    assert kdx.ops.explain("kd_loss", X, Y).reasons["fast"] == "float64 only"
    labels = torch.arange(4)
    torch.testing.assert_close(
        kdx.ops.kd_loss(X.double(), Y.double(), labels, backend="fast"),
        kdx.ops.kd_loss(X.double(), Y.double(), labels, backend="reference"),
    )
    with pytest.raises(BackendError, match="backend='fast' cannot run softmax_kl here: float64 only"):
        kdx.ops.softmax_kl(X, Y, backend="fast")
    assert kdx.ops.plugin_backends() == {"softmax_kl/fast": None}
    assert kdx.SoftTargets(backend="fast").backend == "fast"


def test_a_plugin_that_is_registered_later_is_seen(install, module) -> None:
    assert kdx.ops.plugin_backends() == {}
    with pytest.raises(LookupError, match="none named 'late'"):
        kdx.ops.softmax_kl(X, Y, backend="late")
    install(Spec("softmax_kl/late", module("kdx_test_late"), "late"))
    assert kdx.ops.softmax_kl(X, Y, backend="late") > 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Spec("softmax_kl/cpu", "x", "x"), r"plugin 'kernels'.*'softmax_kl/cpu' has the name of a backend of kdx"),
        (
            Spec("softmax_lk/mine", "x", "x"),
            "'softmax_lk/mine' is a backend of an op that there is not; did you mean 'softmax_kl'",
        ),
    ],
)
def test_a_kernel_with_a_wrong_name_is_one_warning(install, spec, message) -> None:
    install(spec)
    with pytest.warns(PluginWarning, match=message):
        assert kdx.ops.plugin_backends() == {}
    assert kdx.ops.softmax_kl(X, Y) > 0


def test_a_kernel_that_does_not_import_is_an_error_that_names_the_plugin(install, module) -> None:
    install(
        Spec("softmax_kl/gone", "kdx_no_such_module", "gone"),
        Spec("softmax_kl/half", module("kdx_test_half", forward=None), "x"),
    )
    with pytest.raises(
        PluginError, match=r"'softmax_kl/gone' of plugin 'kernels'.*ModuleNotFoundError.*KDX_PLUGINS_DISABLED=kernels"
    ):
        kdx.ops.softmax_kl(X, Y, backend="gone")
    with pytest.raises(PluginError, match=r"'softmax_kl/half' of plugin 'kernels'.*defines no function 'forward'"):
        kdx.ops.softmax_kl(X, Y, backend="half")
    plan = kdx.ops.explain("softmax_kl", X, Y)
    assert "does not import" in plan.reasons["gone"]
    assert plan.backend in ("cpu", "reference")
    assert "does not import" in kdx.ops.plugin_backends()["softmax_kl/gone"]


def test_two_plugins_with_one_kernel_are_an_error_that_names_both(install, module) -> None:
    name = module("kdx_test_twice")
    install(Spec("softmax_kl/twice", name, "one"), name="one")
    install(Spec("softmax_kl/twice", name, "two"), name="two")
    with pytest.raises(PluginError, match=r"plugin 'one'.* and plugin 'two'.*KDX_PLUGINS_DISABLED=two"):
        kdx.ops.softmax_kl(X, Y, backend="twice")


@pytest.mark.parametrize("defect", kernels.DEFECTS)
def test_a_defect_of_a_backend_is_caught(install, module, defect) -> None:
    install(Spec(f"softmax_kl/{defect}", module(f"kdx_test_{defect}", forward=getattr(kernels, defect)), "broken"))
    name = kernels.DEFECTS[defect]
    (check,) = [check for check in checks_of("softmax_kl", backend=defect) if check.name == name]
    with pytest.raises(CheckFailed, match=f"softmax_kl, backend '{defect}', fails the check '{name}'"):
        check()


@pytest.mark.parametrize(
    ("functions", "name"),
    [({"unsupported": kernels.yes}, "answers"), ({"scale_grad": kernels.scale_in_place}, "backward_twice")],
    ids=["answers", "backward_twice"],
)
def test_a_defect_beside_the_values_is_caught(install, module, functions, name) -> None:
    install(Spec("softmax_kl/odd", module("kdx_test_odd", **functions), "broken"))
    (check,) = [check for check in checks_of("softmax_kl", backend="odd") if check.name == name]
    with pytest.raises(CheckFailed, match=f"fails the check '{name}'"):
        check()


def traced_choice(student, teacher, *, weight: float = 1.0, backend: str = "auto"):
    """The same as ``square``, but torch.compile would have to trace how the backend is chosen.

    Args:
        student: ``[N, C]``.
        teacher: ``[N, C]``.
        weight: multiplies it.
        backend: see :func:`kdx.ops.explain`.
    """
    _, module = kdx.ops.select("traced_choice", backend, student, teacher)
    return weight * module.forward(student, teacher)


@torch.compiler.allow_in_graph
def square(student, teacher, *, weight: float = 1.0, backend: str = "auto"):
    """Mean squared difference of two tensors.

    Args:
        student: ``[N, C]``.
        teacher: ``[N, C]``.
        weight: multiplies it.
        backend: see :func:`kdx.ops.explain`.
    """
    _, module = kdx.ops.select("square", backend, student, teacher)
    return weight * module.forward(student, teacher)


def rows_of(student, teacher):
    dtype = torch.promote_types(student.dtype, torch.float32)
    return (student.to(dtype) - teacher.to(dtype)).square().sum() / max(1, student.numel())


def test_a_whole_new_op_passes_is_shown_and_its_defects_are_caught(install, module) -> None:
    module("kdx_test_square", square=square)
    install(
        Spec("square", "kdx_test_square:square", "mean squared difference"),
        Spec("square/reference", module("kdx_test_square_reference", forward=rows_of), "plain"),
        Spec("square/branches", module("kdx_test_branches", forward=branches), "breaks the graph"),
        Spec("square/narrow", module("kdx_test_narrow", forward=narrow), "computes in the dtype of its inputs"),
    )
    tags = OpTags(options=({}, {"weight": 2.0}), zero_when_equal=True, rows=(0, 1, 2, 33), columns=(1, 19, 100))
    check_op("square", backend="reference", tags=tags)
    plan = kdx.ops.explain("square", X, Y)
    assert plan.backend == "branches"
    assert plan.reasons == {"narrow": "branches comes first", "reference": "branches comes first"}
    with pytest.raises(CheckFailed, match="backend 'branches', fails the check 'compiles'"):
        check_op("square", backend="branches", tags=tags)
    message = (
        r"'narrow', fails the check 'half_precision': .* the value is torch.bfloat16, the reference's torch.float32"
    )
    with pytest.raises(CheckFailed, match=message):
        check_op("square", backend="narrow", tags=tags)


def test_an_op_whose_choice_would_be_traced_is_caught(install, module) -> None:
    """After one eager call even this one compiles: the check has to look at the first call."""
    module("kdx_test_traced", traced_choice=traced_choice)
    install(
        Spec("traced_choice", "kdx_test_traced:traced_choice", "mean squared difference"),
        Spec("traced_choice/reference", module("kdx_test_traced_reference", forward=rows_of), "plain"),
    )
    (check,) = [check for check in checks_of("traced_choice", backend="reference") if check.name == "compiles"]
    with pytest.raises(CheckFailed, match=r"torch\.compiler\.allow_in_graph"):
        check()


def branches(student, teacher):
    if student.numel() and student.sum().item() > 1e30:
        return rows_of(student, teacher) * 0
    return rows_of(student, teacher)


def narrow(student, teacher):
    return (student - teacher).square().sum() / max(1, student.numel())


def test_every_check_of_ops_has_a_mutant() -> None:
    names = {check.name for check in checks_of("softmax_kl")}
    assert names == {*kernels.DEFECTS.values(), "answers", "backward_twice", "compiles"}


@pytest.mark.parametrize("op", [op.name for op in kdx.ops.OPS.values() if op.family is None])
def test_the_cpu_kernels_stand_it(op) -> None:
    """The reference and every other backend are held to more of the same in tests/ops."""
    if (reason := kdx.ops.backends()["cpu"]) is not None:
        pytest.skip(reason)
    check_op(op, backend="cpu")


def test_a_plugin_of_kernels_is_checked(module, monkeypatch) -> None:
    plugin = types.ModuleType("kdx_test_kernel_plugin")
    plugin.kdx_ops = hookimpl(
        lambda: [Spec("softmax_kl/fine", "tests.testing.kernels", "no functions"), Spec("Odd-Name", "x:y", "x")],
        specname="kdx_ops",
    )
    found = {check.name: check for check in checks_of(plugin)}
    with pytest.raises(CheckFailed, match="'Odd-Name': expected a name in snake_case, or 'op/backend'"):
        found["names"]()
    with pytest.raises(CheckFailed, match="does not import"):
        found["targets"]()
    with pytest.raises(CheckFailed):
        check_plugin(plugin)
