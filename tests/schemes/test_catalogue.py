"""Every scheme is in the table of kdx/schemes/README.md, with its paper."""

from __future__ import annotations

from pathlib import Path

import pytest

import kdx
import kdx.builtin


@pytest.mark.parametrize("spec", kdx.builtin.kdx_schemes(), ids=lambda spec: spec.name)
def test_the_table_in_the_readme_has_a_row_for_it(spec) -> None:
    text = (Path(kdx.__file__).parent / "schemes" / "README.md").read_text(encoding="utf-8")
    row = next((line for line in text.splitlines() if line.startswith(f"| `{spec.name}` |")), "")
    assert row.count("|") == 6, f"kdx/schemes/README.md needs a row for {spec.name!r}"
    assert ("](https://" in row) == (spec.paper is not None)
