"""The host cost of the fused losses is measured with launchers that launch nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kdx.ops import _dispatch, _native

pytest.importorskip("triton")


def test_every_call_is_timed_and_the_stubs_are_gone_after_it(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    import host_cost

    rows = host_cost.measure(rounds=1, calls=1)
    sys.modules.pop("host_cost")
    names = [row.call for row in rows]
    assert names[0] == "x + 1"
    assert {"softmax_kl, cuda", "kd_loss, cuda", "softmax_kl, triton", "kd_loss, triton"} < set(names)
    assert not _native.overridden("cuda")
    assert not any(found[0] in ("cuda", "triton") for found in _dispatch._chosen.values())
    assert host_cost.table(rows).count("\n") == len(rows) + 1
