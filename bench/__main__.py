"""``python -m bench run OP | heads | sweep | gpu | table | students | on-policy``; see bench/README.md."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from bench import gpu, registry, results, table
from bench.run import Row, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Benchmarks of the kernels.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="time one op (or all) on this machine")
    one.add_argument("op", choices=[*registry.names(), "all"])
    one.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    one.add_argument("--threads", type=int, nargs="*", help="CPU thread counts; default: 1 and all")
    one.add_argument("--only", default="", help="only cases whose shape contains this, for example 1024x1000")
    one.add_argument("--seconds", type=float, default=0.5, help="per provider and case")
    one.add_argument("--out", type=Path, help="result file (CSV); without it the rows are only printed")
    one.add_argument("--append", action="store_true", help="add to the result file instead of replacing it")
    whole = commands.add_parser("gpu", help="tests, benchmarks and the copy roofline of this GPU, in one result file")
    whole.add_argument("ops", nargs="*", metavar="OP", help="the ops to time; default: all")
    whole.add_argument("--out", type=Path, help="result file (CSV); default: bench/results/<device>-<date>.csv")
    whole.add_argument("--commit", help="what to write where there is no git checkout")
    for command in (one, whole):
        command.add_argument(
            "--without", action="append", default=[], metavar="PROVIDER", help='for example "kdx cuda"; may be repeated'
        )
    commands.add_parser("table", help="rewrite the tables and plots of bench/README.md from bench/results/*.csv")
    derived = commands.add_parser("students", help="accuracy and latency of derived students, alone and distilled")
    derived.add_argument("--folder", type=Path, default=Path("runs/students"), help="where the runs are kept")
    derived.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    derived.add_argument("--epochs", type=int, default=4, help="of the students")
    derived.add_argument("--draw", action="store_true", help="only redo picture and table, from the rows")
    cached = commands.add_parser("store", help="epochs from a teacher store against epochs with the live teacher")
    cached.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    cached.add_argument("--table", action="store_true", help="only print the table of the rows that are there")
    heads = commands.add_parser("heads", help="linear_kl at the size of language models: CPU seconds and peak memory")
    heads.add_argument("--shape", action="append", default=[], help="rows x width x classes; may be repeated")
    heads.add_argument("--dtype", action="append", default=[], choices=["float32", "bfloat16"], help="may be repeated")
    heads.add_argument("--rounds", type=int, default=3, help="how often everybody is timed")
    heads.add_argument("--out", type=Path, help="result file (CSV) that rows are added to")
    heads.add_argument("--table", action="store_true", help="only print the tables of the rows that are there")
    heads.add_argument("--peak", metavar="PROVIDER", help="in a process of its own: the peak of one, in bytes")
    heads.add_argument("--without", action="append", default=[], metavar="PROVIDER", help='for example "trl"')
    sweep = commands.add_parser("sweep", help="softmax_kl on this CPU over many shapes, against eager and compile")
    sweep.add_argument("--shape", action="append", default=[], help="for example 131072x10; may be repeated")
    sweep.add_argument("--rounds", type=int, default=9, help="how often everybody is timed at least")
    sweep.add_argument("--seconds", type=float, default=1.0, help="for a case and pass, all providers together")
    sweep.add_argument("--out", type=Path, help="result file (CSV) that rows are added to")
    sweep.add_argument("--table", action="store_true", help="only print the table of the rows that are there")
    text = commands.add_parser("store-text", help="what a store of a language model's outputs takes and keeps")
    text.add_argument("--rows", type=int, default=8)
    text.add_argument("--length", type=int, default=128, help="tokens in a row")
    text.add_argument("--table", action="store_true", help="only print the table of the rows that are there")
    policy = commands.add_parser("on-policy", help="a student taught on what it writes, and its off-policy controls")
    policy.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    policy.add_argument("--table", action="store_true", help="only print the table of the rows that are there")
    options = parser.parse_args()
    if (
        own := {"heads": _heads, "on-policy": _on_policy, "store-text": _store_text, "sweep": _sweep}.get(
            options.command
        )
    ) is not None:
        return own(options)
    if options.command == "store":
        from bench import store  # what trains needs more packages than what times kernels

        if not options.table:
            store.run(options.seeds)
        print(store.table())
        return 0
    if options.command == "students":
        from bench import students

        if options.draw:
            students.document()
        else:
            students.run(options.folder, options.seeds, options.epochs)
        print(students.table())
        return 0
    if options.command == "table":
        table.update()
        return 0
    if options.command == "gpu":
        ops = [registry.load(op).op for op in options.ops or registry.names()]
        return gpu.run(ops, options.out, options.commit, options.without)
    return _run(options)


def _store_text(options: argparse.Namespace) -> int:
    from bench import store_text

    if not options.table:
        store_text.run(options.rows, options.length)
    print(store_text.table())
    return 0


def _on_policy(options: argparse.Namespace) -> int:
    from bench import on_policy  # what trains needs more packages than what times kernels

    if not options.table:
        on_policy.run(options.seeds)
    print(on_policy.table())
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from bench import sweep

    if options.table:
        print(sweep.table(sweep.read()))
    else:
        sweep.run(options.shape, options.rounds, options.seconds, options.out)
    return 0


def _heads(options: argparse.Namespace) -> int:
    from bench import heads

    shapes, dtypes = options.shape or list(heads.SHAPES), options.dtype or list(heads.DTYPES)
    if options.peak:
        heads.peak(options.peak, shapes[0], dtypes[0])
    elif options.table:
        print(heads.table(heads.read()))
    else:
        heads.run(shapes, dtypes, options.rounds, options.out, options.without)
    return 0


def _run(options: argparse.Namespace) -> int:
    device = torch.device(options.device)
    threads = [torch.get_num_threads()]
    if device.type == "cpu":
        threads = options.threads or sorted({1, *threads})
    ops = registry.names() if options.op == "all" else [options.op]
    if options.out and not options.append:
        results.start(options.out)

    def record(rows: list[Row]) -> None:
        if options.out:
            results.append(options.out, rows)

    conditions = results.conditions(device)
    wrong: list[str] = []
    for op in ops:
        bench = registry.load(op)
        wrong += run(bench, device, threads, conditions, options.seconds, options.only, options.without, record)
    if options.out:
        print(f"rows in {options.out}")
    return _verdict(wrong)


def _verdict(wrong: list[str]) -> int:
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
