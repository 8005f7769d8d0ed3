"""Runs of the small experiment, and plans of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdx.assistants.base import Assistant
from kdx.experiment.experiment import Experiment
from kdx.hookspecs import hookimpl
from kdx.ref import Ref
from kdx.spec import Spec
from kdx.stage import Stage
from tests.experiment.tiny import recipe


@pytest.fixture
def run(tmp_path: Path):
    """Runs a recipe in a folder without drawing its report, which is tested apart."""

    def _run(name: str = "run", *, given=None, **changes):
        return Experiment(given or recipe(**changes), tmp_path / name, report=False).run()

    return _run


@pytest.fixture
def planned(plugged):
    """Registers an assistant whose plan is given as a list."""

    def _planned(stages: list[Stage]) -> dict[str, str]:
        class Given(Assistant):
            def plan(self, teacher: Ref, student: Ref) -> list[Stage]:
                return stages

        class Plugin:
            made = Given

            @hookimpl
            def kdx_assistants(self):
                return [Spec("given", f"{__name__}:GIVEN", "for a test")]

        globals()["GIVEN"] = Given
        plugged(Plugin(), "given-plan")
        return {"name": "given"}

    return _planned
