"""The command ``kdx search``."""

import json
from pathlib import Path

import pytest
import yaml
from kdx_search.cli import app
from typer.testing import CliRunner

pytestmark = pytest.mark.filterwarnings("ignore::kdx.assistants.gap.WeakTeacherWarning")


def test_the_command_searches_and_shows_the_front(tiny, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(tiny()))
    arguments = [str(tmp_path / "small.yaml"), "search.epochs=1", "--trials", "2", "--max-flops", "50%"]
    arguments += ["--folder", str(tmp_path / "found")]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "* trial " in result.stdout
    assert "2 trials in " in result.stdout
    assert "distilled student" in result.stdout
    summary = json.loads((tmp_path / "found" / "search.json").read_text())
    assert summary["asked_for"] == 2
    assert max(each["cost"] for each in summary["trials"]) <= 0.5 * 2 * (64 * 24 + 24 * 16 + 16 * 10)
    again = CliRunner().invoke(app, [*arguments, "--resume", "--json"], catch_exceptions=False)
    assert json.loads(again.stdout)["chosen"] == summary["chosen"]


def test_the_searches_of_the_package_are_listed() -> None:
    result = CliRunner().invoke(app, ["--list"], catch_exceptions=False)
    assert result.stdout.split() == ["fashion-search"]
