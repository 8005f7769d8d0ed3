"""What is in the key of a kept teacher."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from kdx.experiment.experiment import Experiment
from kdx.experiment.teacher_code import code_behind
from kdx.hookspecs import hookimpl
from kdx.registry import Plugins
from kdx.spec import Spec
from tests.experiment.tiny import TINY, recipe
from tests.ranks import on_two_ranks

TEACHER = TINY["teacher"]


def place(**changes) -> str:
    """The name of the teacher's folder in the cache."""
    experiment = Experiment(recipe(**changes), Path("nowhere"))
    stage = next(stage for stage in experiment.plan if stage.name == "teacher")
    data = experiment.assembly.data_of("teacher")
    entry = experiment.runner.cache.entry(stage, experiment.recipe, data, experiment.plugins, model=stage.model)
    assert entry is not None
    return entry.folder.name


def test_what_changes_no_weight_of_the_teacher_is_not_in_its_key() -> None:
    same = {
        "student": {"student": {"model": {"name": "mlp", "hidden": [4]}}},
        "knowledge": {"knowledge": {}},
        "train": {"train": {"epochs": 5}},
        "labelled": {"data": {**TINY["data"], "labelled": 200}},
        "weight": {"task": {"name": "classification", "weight": 0.5}},
    }
    assert {name: place(**change) for name, change in same.items()} == dict.fromkeys(same, place())


def test_what_training_depends_on_beside_the_recipe_is_in_the_key(monkeypatch) -> None:
    plain, threads = place(), torch.get_num_threads()
    changed = {
        "processes": ("kdx.experiment.teacher_cache.processes", lambda cpu: 2),
        "instruction set": ("torch.backends.cpu.get_cpu_capability", lambda: "DEFAULT"),
        "gpu": ("torch.cuda.is_available", lambda: True),
        "torch": ("torch.__version__", "0.1"),
        "kdx": ("kdx.experiment.teacher_cache.__version__", "0.0.1"),
        "code of kdx": ("kdx.experiment.teacher_code._hash", lambda files: "other"),
    }
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "H1000")
    found = {}
    for name, (what, value) in changed.items():
        with monkeypatch.context() as patch:
            patch.setattr(what, value)
            found[name] = place()
    torch.set_num_threads(threads + 1)
    found["threads"] = place()
    torch.set_num_threads(threads)
    found["bf16"] = place(teacher={**TEACHER, "train": {**TEACHER["train"], "mixed_precision": "bf16"}})
    assert len({plain, *found.values()}) == 1 + len(found)
    assert place() == plain


RANKS = """
import sys
import torch.distributed as dist
dist.init_process_group("gloo", store=dist.FileStore(sys.argv[2], 2), rank=int(sys.argv[1]), world_size=2)
from kdx.training.ranks import agreed, is_first, processes
print(processes(cpu=True), is_first(cpu=True), agreed(sys.argv[1], cpu=True))
"""


def test_the_processes_of_a_run_are_counted_and_the_first_speaks_for_all(tmp_path: Path) -> None:
    assert on_two_ranks(RANKS, str(tmp_path / "store")) == ["2 True 0", "2 False 0"]


FILES = {
    "netty/__init__.py": "",
    "netty/plugin.py": "",
    "netty/net.py": "from netty.blocks import Block\nfrom besides import more\n",
    "netty/blocks.py": "class Block: ...\n",
    "netty/data.py": "",
    "besides.py": "def late():\n    import besides_too\n",
    "besides_too.py": "import os, packaging.version, nowhere_to_be_found\n",
    "unrelated.py": "",
}


@pytest.fixture
def netty(tmp_path: Path, monkeypatch):
    """A plugin with files of its own; returns their folder and the plugins."""

    class Plugin:
        @hookimpl
        def kdx_models(self):
            return [Spec("netty", "netty.net:Block", "for a test")]

        @hookimpl
        def kdx_datasets(self):
            return [Spec("netty-data", "netty_data:Rows", "for a test")]

        @hookimpl
        def kdx_tasks(self):
            return [Spec("netty-task", "netty_task:Task", "for a test")]

    for name, text in {**FILES, "netty_data.py": "", "netty_task.py": ""}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    plugins = Plugins(entries=[])
    plugins.register(Plugin(), "netty")
    return tmp_path, plugins


def test_the_whole_package_of_a_model_counts_and_what_its_files_import(netty) -> None:
    folder, plugins = netty
    text = '{"name": "residual-sum", "student": {"name": "netty"}}'
    before = code_behind(text, plugins)
    assert before is not None
    assert {"kdx", "netty", "besides", "besides_too", "packaging"} <= before.keys()
    assert not {"unrelated", "os", "netty_data", "netty_task", "nowhere_to_be_found"} & before.keys()
    assert before["packaging"] == importlib.import_module("packaging").__version__
    assert "netty" not in sys.modules  # nothing of it was run
    changed = {}
    for name, source in FILES.items():
        (folder / name).write_text(source + "# changed")
        changed[name] = code_behind(text, plugins) != before
        (folder / name).write_text(source)
    assert changed == dict.fromkeys(FILES, True) | {"unrelated.py": False}
    assert code_behind(text, plugins) == before


@pytest.mark.parametrize(
    ("text", "tops"),
    [
        ('"name": "netty-data"', {"netty_data"}),
        ('"name": "netty-task"', {"netty_task"}),
        ('"base": {"target": "besides:late"}', {"besides", "besides_too", "packaging"}),
        ('"base": {"target": "os:system"}', set()),
        ('"url": "http://besides", "name": "netty-other"', set()),
    ],
)
def test_data_sets_tasks_and_targets_count_by_name(text: str, tops: set[str], netty) -> None:
    found = code_behind(text, netty[1])
    assert found is not None
    assert found.keys() - {"kdx", "kdx_ext", *sys.modules.keys() - tops} == tops


def test_the_files_that_options_name_are_searched_for_names_too(netty, tmp_path: Path, plugged) -> None:
    path = tmp_path / "student.json"
    found = []
    for dropout in (0.0, 0.5):
        path.write_text(json.dumps({"base": {"name": "mlp", "dropout": dropout}, "edits": [], "from": "besides:late"}))
        found.append(place(teacher={**TEACHER, "model": {"name": "derived", "config": str(path)}}))
    (tmp_path / "besides_too.py").write_text("# changed")
    found.append(place(teacher={**TEACHER, "model": {"name": "derived", "config": str(path)}}))
    assert len(set(found)) == 3


def test_a_teacher_whose_code_is_in_no_file_is_not_kept(run, plugged, tmp_path: Path, monkeypatch) -> None:
    class Plugin:
        @hookimpl
        def kdx_models(self):
            return [Spec("typed-in", "kdx_test_notebook:net", "for a test")]

    module = type(sys)("kdx_test_notebook")
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def net(num_classes: int = 10, input_shape: tuple[int, ...] = (1, 8, 8)) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, num_classes))

    module.net = net
    plugged(Plugin(), "notebook")
    told: list[str] = []
    for name in ("one", "two"):
        given = recipe(teacher={**TEACHER, "model": {"name": "typed-in"}})
        summary = Experiment(given, tmp_path / name, notify=told.append, report=False).run()
        assert "seconds" in summary["stages"]["teacher"]
    assert told.count("teacher: not kept for other runs, for some of its code is in no file") == 2
    assert not (tmp_path / ".teachers").exists()
