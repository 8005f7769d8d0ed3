"""The page on one's own models and data: its files are written and its commands run, in their order."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "distil-my-model.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_page_works_from_top_to_bottom(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    said: dict[str, str] = {}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        said[" ".join(command)] = done.stdout + done.stderr
        return done

    found = re.findall(r"^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$", PAGE, re.M | re.S)
    refused = []
    for language, title, text in found:
        if title:
            (tmp_path / title).write_text(text)
            if language == "python" and title != "my_models.py":
                done = run(title)
                assert done.returncode == 0, done.stderr
        for line in text.splitlines() if language == "sh" else ():
            program, *arguments = shlex.split(line)
            assert program == "kdx"
            done = run("-m", "kdx", *arguments)
            needs_trust = {"evaluate", "predict"} & {arguments[0]} and arguments[1] == "runs/photos"
            if needs_trust and "--trust" not in arguments:
                refused.append(arguments[0])
                assert done.returncode == 1
                assert "If you know what it does, allow it with --trust" in done.stderr.replace("\n", " ")
            else:
                assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert refused == ["predict"]
    assert said["use_it.py"].strip() in ("circle", "square", "triangle")
    assert f"runs {tmp_path / 'my_models.py'} (sha256 " in said["-m kdx run photos.yaml"]
    predicted = said["-m kdx predict runs/table new.csv"].splitlines()
    assert [line.partition(":")[0] for line in predicted] == ["new.csv", "new.csv"]
    assert ": long" in predicted[0]
    assert ": short" in predicted[1]
    assert (tmp_path / "photos.onnx").exists()
