"""The host cost of the fused losses is measured with launchers that launch nothing."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from bench import host
from kdx.ops import _dispatch, _native


def test_every_call_is_timed_and_the_stubs_are_gone_after_it(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    rows = host.measure(rounds=1, calls=1)
    names = [row.call for row in rows]
    assert names[0] == "x + 1"
    assert {"softmax_kl, cuda", "kd_loss, cuda", "softmax_kl, triton", "kd_loss, triton"} < set(names)
    assert not _native.overridden("cuda")
    assert not any(found[0] in ("cuda", "triton") for found in _dispatch._chosen.values())
    host.save(rows, tmp_path / "host.csv")
    assert (tmp_path / "host.csv").read_text().startswith("call,microseconds,ratio\nx + 1,")
    assert host.table(rows).count("\n") == len(rows) + 1
