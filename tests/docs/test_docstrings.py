"""Docstrings begin with what a thing is or does."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def sources() -> list[Path]:
    found = [*(ROOT / "kdx").rglob("*.py"), *(ROOT / "plugins").glob("*/kdx_*/**/*.py")]
    return sorted(path for path in found)


def texts(tree: ast.AST) -> Iterator[str]:
    """Docstrings of modules, classes, functions and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_docstring_begins_with_what(path: Path) -> None:
    assert [
        text for text in texts(ast.parse(path.read_text())) if text.lstrip().startswith(("What ", "Whatever "))
    ] == []
