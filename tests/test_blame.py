"""A component's exception is one message that names it, its package and version; the traceback comes on demand."""

from __future__ import annotations

import functools
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import kdx
from kdx.blame import blaming, origin_of
from kdx.errors import CaptureError, ComponentError, PluginError
from kdx.teachers import Frozen

ROOT = Path(__file__).parents[1]
BATCHES = [(torch.randn(8, 4), torch.arange(8) % 3)]


class Failing(kdx.Knowledge):
    """Fails when it is called."""

    def forward(self, student, teacher, batch):
        raise KeyError("no such key")


class Odd(ValueError):
    """An error whose constructor takes other arguments than a message."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), Odd(1, 2), OSError(2, "no"), UnicodeDecodeError("utf8", b"a", 0, 1, "bad"), CaptureError("t")],
)
def test_an_error_of_a_component_is_of_its_type_and_one_of_kdx(error) -> None:
    with pytest.raises(type(error)) as caught, blaming("knowledge 'kd'", kdx.SoftTargets()):
        raise error
    assert isinstance(caught.value, ComponentError)
    assert caught.value.__cause__ is error
    assert str(caught.value).startswith(
        f"knowledge 'kd' (SoftTargets of kdx {kdx.__version__}) raised {type(error).__name__}"
    )
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_the_innermost_component_is_named_and_an_end_of_iteration_ends_no_loop() -> None:
    with pytest.raises(ComponentError, match=r"^inner") as caught, blaming("outer", nn), blaming("inner", nn):
        next(iter([]))
    assert not isinstance(caught.value, StopIteration)


def test_packages_files_and_what_is_python_s_own_are_told_apart() -> None:
    assert origin_of(nn.Linear(1, 1)) == f"torch {torch.__version__}"
    assert origin_of(functools.partial(kdx.SoftTargets, 2.0)) == f"kdx {kdx.__version__}"
    assert str(origin_of(Failing())).endswith("test_blame.py")
    assert origin_of([]) is None


def fit(scheme, batches=BATCHES, **options):
    return kdx.fit(scheme, batches, device="cpu", **options)


class Unbuilt(kdx.Hint):
    """A component that fails as it is built."""

    def __init__(self) -> None:
        super().__init__(student="logits", teacher="logits")

    def setup(self, student, teacher):
        raise ValueError("nothing to build")


class Broken(nn.Linear):
    """A model that fails."""

    def forward(self, x):
        raise RuntimeError("shapes")


class Rows(Dataset):
    """A data set that fails at its second row."""

    def __len__(self):
        return 8

    def __getitem__(self, row):
        if row == 1:
            raise IndexError("a hole")
        return torch.zeros(4), 0


def linear() -> nn.Module:
    return nn.Linear(4, 3)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            lambda: fit(kdx.Offline(linear(), linear(), knowledge={"mine": Failing()})),
            r"^knowledge 'mine' \(Failing of .*test_blame.py\) raised KeyError: 'no such key'$",
        ),
        (
            lambda: fit(kdx.Offline(linear(), linear(), knowledge={"mine": Unbuilt()})),
            r"^knowledge 'mine' \(Unbuilt of .*test_blame.py\) raised ValueError: nothing to build$",
        ),
        (
            lambda: fit(kdx.Supervised(linear(), task=lambda z, y: z.nonsense)),
            r"^the task \(.*<lambda> of .*AttributeError",
        ),
        (
            lambda: fit(kdx.Supervised(Broken(4, 3))),
            r"^the model \(Broken of .*test_blame.py\) raised RuntimeError: shapes",
        ),
        (
            lambda: fit(kdx.Offline(linear(), Frozen(Broken(4, 3)), knowledge={"kd": kdx.SoftTargets()})),
            "^the model .Brok",
        ),
        (
            lambda: fit(kdx.Supervised(linear()), DataLoader(Rows(), 4)),
            r"^the data \(Rows of .* raised IndexError: a hole$",
        ),
        (
            lambda: fit(kdx.Supervised(linear()), evaluate=DataLoader(Rows(), 4)),
            r"^the data \(Rows of .* raised IndexError: a hole$",
        ),
        (
            lambda: fit(kdx.Supervised(linear()), DataLoader(Rows(), 4, num_workers=1)),
            r"^the data \(Rows of .* raised IndexError: a hole$",
        ),
    ],
    ids=["knowledge", "setup", "task", "student", "teacher", "data", "evaluation", "worker"],
)
def test_whatever_fails_in_a_run_is_named(run, message) -> None:
    with pytest.raises(ComponentError, match=message):
        run()


def test_an_observer_that_fails_is_named_with_its_package() -> None:
    class Watch:
        @kdx.hookimpl
        def kdx_step_end(self, run, step):
            raise KeyError("gone")

    with pytest.raises(
        PluginError, match=r"observer 'Watch \(number 1\)' of .*test_blame.py failed in kdx_step_end: Key"
    ):
        fit(kdx.Supervised(linear()), observers=[Watch()])


RECIPE = """
data: {dataset: {name: digits}, validation: 50}
device: cpu
teacher: {model: {name: mlp}, train: {epochs: 1}}
student: {model: {name: mlp}}
knowledge: {odd: {name: failing}}
train: {epochs: 1}
controls: []
"""


@pytest.mark.parametrize("debug", [False, True])
def test_a_plugin_that_fails_is_one_message_of_the_command(debug, tmp_path) -> None:
    info = tmp_path / "kdx_failing-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kdx-failing\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[kdx]\nfailing = kdx_failing\n")
    (tmp_path / "kdx_failing.py").write_text(
        "import kdx\n"
        "@kdx.hookimpl\n"
        "def kdx_knowledge():\n"
        "    return [kdx.Spec('failing', 'kdx_failing_parts:Failing', 'fails')]\n"
    )
    (info / "top_level.txt").write_text("kdx_failing\nkdx_failing_parts\n")
    (tmp_path / "kdx_failing_parts.py").write_text(
        "import kdx\n"
        "class Failing(kdx.Knowledge):\n"
        "    def forward(self, student, teacher, batch):\n"
        "        raise KeyError('no such key')\n"
    )
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "kdx", "run", "recipe.yaml", *["--debug"] * debug],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "knowledge 'odd' (Failing of kdx-failing 1.2) raised KeyError: 'no such key'" in done.stderr
    assert ("Traceback" in done.stderr) is debug


def test_an_assertion_of_a_device_says_what_it_is_most_often_about() -> None:
    message = r"raised RuntimeError: CUDA error: device-side assert triggered; a kernel met .* label .* device='cpu'"
    with pytest.raises(ComponentError, match=message), blaming("the task", print):
        raise RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later")
