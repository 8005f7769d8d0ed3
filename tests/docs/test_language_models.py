"""The recipe of the page on language models is written and its command run; the site's test runs its Python."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "language-models.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_recipe_of_the_page_runs(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    for title, text in re.findall(r"^```\w+ title=\"([^\"]+)\"\n(.*?)^```$", PAGE, re.M | re.S):
        (tmp_path / title).write_text(text)
    commands = re.findall(r"^```sh\n(.*?)\n```$", PAGE, re.M | re.S)
    assert len(commands) == 2
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "kdx"
        done = subprocess.run(
            [sys.executable, "-m", "kdx", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "cross-entropy per token on" in done.stdout
    for run in ("letters", "two"):
        summary = json.dumps(json.loads((tmp_path / "runs" / run / "summary.json").read_text()))
        for metric in ("cross_entropy", "perplexity", "bits_per_byte"):
            assert metric in summary
