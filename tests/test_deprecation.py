"""The warning of deprecated names, and that none outlives the version that was to remove it."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.version import Version

import kdx
from kdx.deprecation import warn_deprecated
from kdx.errors import KdxDeprecationWarning

ROOT = Path(__file__).parents[1]


def overdue(source: str, version: str) -> Iterator[str]:
    """What the calls of warn_deprecated in a source name that was to be gone by a version."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("warn_deprecated"):
            given = {
                keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg == "removal"
            }
            if Version(given["removal"]) <= Version(version):
                yield ast.unparse(node.args[0])


def old_name() -> int:
    warn_deprecated("kdx.old_name", since="0.2", removal="0.4", replacement="kdx.new_name")
    return 1


def test_it_says_since_when_until_when_and_what_to_use_and_points_at_the_caller() -> None:
    with pytest.warns(KdxDeprecationWarning) as caught:
        assert old_name() == 1
    (warning,) = caught
    expected = "kdx.old_name is deprecated since kdx 0.2 and goes in 0.4; use kdx.new_name"
    assert str(warning.message) == expected
    assert Path(warning.filename) == Path(__file__)
    assert "assert old_name() == 1" in Path(__file__).read_text().splitlines()[warning.lineno - 1]


def test_it_says_so_where_nothing_takes_the_place() -> None:
    with pytest.warns(KdxDeprecationWarning, match=r"goes in 1\.0; nothing takes its place"):
        warn_deprecated("x", since="0.9", removal="1.0")


def test_users_see_it_by_default_and_can_make_it_an_error() -> None:
    assert issubclass(KdxDeprecationWarning, FutureWarning)
    with warnings.catch_warnings():
        warnings.simplefilter("error", KdxDeprecationWarning)
        with pytest.raises(KdxDeprecationWarning):
            old_name()


def test_nothing_outlives_the_version_that_was_to_remove_it() -> None:
    call = 'warn_deprecated("a", since="0.2", removal="0.4")'
    assert list(overdue(call, "0.4")) == ["'a'"]
    assert list(overdue(call, "0.3.9")) == []
    assert [
        found for path in (ROOT / "kdx").rglob("*.py") for found in overdue(path.read_text(), kdx.__version__)
    ] == []
