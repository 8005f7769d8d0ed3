"""The environment of a run: the commit of the working directory, asked of git without running anything else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kdx.experiment.environment import environment


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs git in a new repository, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)

    def run(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()

    run("init", "--quiet")
    run("config", "user.name", "someone")
    run("config", "user.email", "someone@example.org")
    return run


def commit() -> str | None:
    return environment(0)["git_commit"]


def test_the_commit_and_whether_files_differ_from_it(git) -> None:
    assert commit() is None  # nothing is committed yet
    Path("a.txt").write_text("one\n")
    git("add", "a.txt")
    git("commit", "--quiet", "-m", "first")
    head = git("rev-parse", "HEAD")
    assert commit() == head
    Path("new.txt").write_text("not tracked\n")
    assert commit() == head
    Path("a.txt").write_text("another\n")
    assert commit() == f"{head}-dirty"
    git("add", "a.txt")
    assert commit() == f"{head}-dirty"


def test_without_a_repository_or_without_git_there_is_no_commit(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() is None


def test_the_configuration_of_the_repository_runs_nothing(git, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    Path("a.txt").write_text("one\n")
    Path(".gitattributes").write_text("*.txt filter=own diff=own\n")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    head = git("rev-parse", "HEAD")
    command = f"sh -c 'touch {ran}; cat'"
    for key in ("core.fsmonitor", "filter.own.clean", "filter.own.smudge", "diff.own.textconv", "diff.external"):
        git("config", key, command)
    Path("a.txt").write_text("two\n")
    os.utime("a.txt", (0, 0))
    assert commit() == f"{head}-dirty"
    git("config", "remote.origin.url", str(tmp_path / "elsewhere"))
    git("config", "remote.origin.promisor", "true")
    git("config", "remote.origin.uploadpack", command)
    git("config", "core.repositoryformatversion", "1")
    git("config", "extensions.partialClone", "origin")
    for path in (tmp_path / ".git" / "objects").glob("??/*"):
        path.unlink()
    commit()
    assert not ran.exists()
