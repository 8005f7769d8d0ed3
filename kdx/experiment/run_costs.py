"""The costs of the models of a run: of its students, and of what they were converted into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdx.errors import KdxError
from kdx.experiment.run_files import RESULT, SUMMARY, read_result, read_summary

__all__ = ["run_costs"]


def run_costs(folder: Path) -> dict[str, dict[str, Any]]:
    """Name of a stage, and of each of its artifacts below it, -> its costs and files as ``result.json`` has them.

    Of a run that is not finished those of the stages that are. Neither torch nor the models are loaded.

    Raises:
        KdxError: the folder holds no run, or one without a finished stage.
        DamagedError: see :func:`kdx.experiment.run_files.read_summary`.
    """
    if (folder / SUMMARY).exists():
        stages = read_summary(folder)["stages"]
    else:
        places = sorted(folder.glob(f"*/{RESULT}"), key=lambda path: path.stat().st_mtime)
        stages = {path.parent.name: read_result(path.parent) for path in places}
    if not stages:
        raise KdxError(f"{folder} holds no run with a finished stage; give the folder of a run, or two models")
    found: dict[str, dict[str, Any]] = {}
    for name, stage in stages.items():
        found[name] = stage
        found |= {f"  {name} as {artifact}": each for artifact, each in stage.get("artifacts", {}).items()}
    kept = ("parameters", "flops", "bytes", "bits", "sparsity", "latency_ms", "latency_spread_ms", "uncounted", "files")
    return {name: {key: each[key] for key in kept if key in each} for name, each in found.items()}
