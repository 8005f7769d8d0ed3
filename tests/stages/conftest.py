"""Runs of the small experiment, and plans of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdx.assistants.base import Assistant, ModelRef, Stage
from kdx.experiment import Experiment
from kdx.hookspecs import Spec, hookimpl
from kdx.registry import default_plugins
from tests.stages.tiny import recipe


@pytest.fixture
def run(tmp_path: Path, monkeypatch):
    """Runs a recipe in a folder without drawing its report, which is tested apart."""
    monkeypatch.setattr("kdx.experiment.write_report", lambda folder, summary: None)

    def _run(name: str = "run", *, given=None, **changes):
        return Experiment(given or recipe(**changes), tmp_path / name).run()

    return _run


@pytest.fixture
def planned():
    """Registers an assistant whose plan is given as a list."""
    plugins = default_plugins()
    names = []

    def _planned(stages: list[Stage]) -> dict[str, str]:
        class Given(Assistant):
            def plan(self, teacher: ModelRef, student: ModelRef) -> list[Stage]:
                return stages

        class Plugin:
            made = Given

            @hookimpl
            def kdx_assistants(self):
                return [Spec("given", f"{__name__}:GIVEN", "for a test")]

        globals()["GIVEN"] = Given
        plugin = Plugin()
        plugins.register(plugin, "given-plan")
        names.append(plugin)
        return {"name": "given"}

    yield _planned
    for plugin in names:
        plugins.manager.unregister(plugin)
        plugins.infos = [info for info in plugins.infos if info.name != "given-plan"]
        plugins._components = {}
