"""The table and the plots of bench/README.md, made from the committed result files alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from bench import results

README = Path(__file__).parent / "README.md"
BASELINES = ("eager", "torch.compile")
Row = dict[str, str]


def update() -> None:
    """Rewrite what stands between the markers of bench/README.md, and the plots beside the results."""
    rows = results.read_all()
    parts = []
    for op in sorted({row["op"] for row in rows} - {"copy"}):
        mine = [row for row in rows if row["op"] == op]
        parts.append(f"### {op}\n\n" + "\n\n".join(_tables(mine)))
        parts += [f"![{op}: time against size]({name})" for name in plot(op, mine)]
    text = README.read_text()
    begin, end = "<!-- results: python -m bench table -->", "<!-- end of results -->"
    body = "\n\n".join(parts) or "No result is committed."
    new = re.sub(f"{re.escape(begin)}.*{re.escape(end)}", lambda _: f"{begin}\n{body}\n{end}", text, flags=re.DOTALL)
    README.write_text(new)


def _key(row: Row) -> tuple[str, ...]:
    return tuple(row[k] for k in ("device", "torch", "threads", "shape", "dtype", "data", "pass", "x"))


def _tables(rows: list[Row]) -> Iterable[str]:
    """One table per device, torch and thread count."""
    places = list(
        dict.fromkeys((r["device"], r["torch"], r["triton"], r["threads"], r["commit"], r["date"]) for r in rows)
    )
    for place in places:
        device, torch_version, triton, threads, commit, date = place
        here = [
            r for r in rows if (r["device"], r["torch"], r["triton"], r["threads"], r["commit"], r["date"]) == place
        ]
        title = f"{device}" + (f", {threads} thread{'s' if threads != '1' else ''}" if threads else "")
        title += f", torch {torch_version}" + (f", triton {triton}" if triton and not threads else "")
        copy = here[0]["copy_gb_per_s"]
        lines = [f"**{title}** (copy {copy} GB/s; commit {commit}, {date})", ""]
        lines += [
            "| shape | dtype | data | pass | provider | ms (20 - 80 %) | vs eager | vs compile | GB/s | of copy |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        by_case: dict[tuple[str, ...], dict[str, Row]] = {}
        for row in here:
            by_case.setdefault(_key(row), {})[row["provider"]] = row
        for case in by_case.values():
            lines += [_line(row, case) for row in case.values()]
        yield "\n".join(lines)


def _line(row: Row, case: dict[str, Row]) -> str:
    ratios = []
    for name in BASELINES:
        known = name in case and name != row["provider"]
        ratios.append(f"{float(case[name]['median_ms']) / float(row['median_ms']):.2f}x" if known else "")
    name = f"**{row['provider']}**" if row["provider"].startswith("kdx") else row["provider"]
    time = f"{float(row['median_ms']):.4g} ({float(row['p20_ms']):.4g} - {float(row['p80_ms']):.4g})"
    cells = [row["shape"], row["dtype"], row["data"], row["pass"], name, time, *ratios]
    return "| " + " | ".join([*cells, row["gb_per_s"], f"{100 * float(row['share_of_copy']):.0f} %"]) + " |"


def plot(op: str, rows: list[Row]) -> list[str]:
    """Time of fwd+bwd against the sweep's size, one file per device type; the copy limit is a line."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    made = []
    for kind in ("cpu", "gpu"):
        here = [r for r in rows if r["x"] and r["pass"] == "fwd+bwd" and bool(r["threads"]) == (kind == "cpu")]
        here = [r for r in here if r["threads"] in ("", "1")]
        if not here:
            continue
        figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
        devices = list(dict.fromkeys(r["device"] for r in here))
        for device, style in zip(devices, ("-", "--", ":", "-."), strict=False):
            mine = [r for r in here if r["device"] == device]
            for color, provider in enumerate(dict.fromkeys(r["provider"] for r in mine)):
                points = sorted((float(r["x"]), float(r["median_ms"])) for r in mine if r["provider"] == provider)
                axes.plot(
                    *zip(*points, strict=True), marker="o", color=f"C{color}", linestyle=style,
                    label=f"{provider}, {device}" if len(devices) > 1 else provider,
                )  # fmt: skip
            # The least bytes of a case follow from its rate; at the speed of a copy they take this long.
            limit = {float(r["x"]): float(r["median_ms"]) * float(r["share_of_copy"]) for r in mine}
            label = "copy limit" if device == devices[0] else None
            axes.plot(
                *zip(*sorted(limit.items()), strict=True), color="black", linestyle=style, linewidth=1, label=label
            )
        size = "points N" if op.startswith("rkd") else "classes C"
        axes.set(xscale="log", yscale="log", xlabel=size, ylabel="forward + backward, ms")
        axes.set_title(f"{op}, {here[0]['dtype']}, {' and '.join(devices)}", fontsize=10)
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3, which="both")
        name = f"results/{op}-{kind}.png"
        figure.savefig(README.parent / name, dpi=110, metadata={"Software": None})
        plt.close(figure)
        made.append(name)
    return made
