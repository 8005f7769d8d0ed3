"""Files about the project that other programs read."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import kdx

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def citation() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text())


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_citation_has_what_its_format_requires(citation) -> None:
    assert citation["cff-version"] == "1.2.0"
    assert all(citation[key] for key in ("message", "title", "authors"))
    assert citation["type"] in ("software", "dataset")
    known = {"abstract", "authors", "cff-version", "keywords", "license", "message", "title", "type", "version"}
    assert citation.keys() <= known
    assert all(author.keys() <= {"name", "website", "email"} for author in citation["authors"])


def test_the_citation_agrees_with_the_package(citation, project) -> None:
    assert str(citation["version"]) == project["version"] == kdx.__version__
    assert citation["license"] == project["license"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in project["authors"]]


def test_the_ci_matrix_has_the_oldest_python_and_torch_that_the_package_takes(project) -> None:
    matrix = (ROOT / "docs" / "ci-matrix.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in matrix.splitlines() if line.startswith("| ")]
    jobs = {row[0]: row[1:] for row in rows}
    (torch,) = [re.match(r"torch>=(\S+)", need)[1] for need in project["dependencies"] if need.startswith("torch>")]
    assert jobs["oldest"][:2] == [project["requires-python"].removeprefix(">="), torch]
    assert {row[3] for row in jobs.values()} >= {"`cpu`", "`none`", "`auto`"}


def test_the_security_policy_says_how_to_report() -> None:
    assert "## Reporting" in (ROOT / "SECURITY.md").read_text()
