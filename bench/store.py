"""Epochs from a teacher store against epochs with the live teacher: ``python -m bench store``.

The recipe fashion-cached on one thread: 4,500 images in four views, a teacher of 220,594 parameters, a student of
9,122, four epochs from the same weights in the same order for every arm of a seed. Time is CPU time of the process,
which other load on the machine lengthens less than it does the wall time.
"""

from __future__ import annotations

import csv
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import kdx
from bench import results
from kdx import Batch
from kdx.experiment import ExperimentData, load_recipe
from kdx.store import Store, write_store
from kdx.teachers import Frozen, Stored, Teacher
from kdx.training import evaluate

FILE = Path(__file__).parent / "results" / "store" / "cpu.csv"
EPOCHS, VIEWS, TEACHER_EPOCHS = 4, 4, 5
ARMS = (None, ("logits", "fp32"), ("logits", "fp16"), ("topk:3@4", "fp16"), ("sample:16@4", "fp16"))
COLUMNS = (
    *("arm", "dtype", "seed", "epoch_s", "write_s", "bytes", "test_accuracy", "teacher_accuracy", "threads"),
    *("device", "torch", "commit", "date"),
)


def run(seeds: list[int]) -> None:
    """Measures every arm and writes the rows."""
    torch.set_num_threads(1)
    conditions = results.conditions(torch.device("cpu"))
    rows = []
    for seed in seeds:
        data = ExperimentData(load_recipe("fashion-cached", {"seed": seed}))
        test = data.evaluation(data.test)
        torch.manual_seed(seed)
        teacher = kdx.make("model", "convnet", width=24, **data.shape)
        one_cycle = kdx.Ref("OneCycleLR", max_lr=0.1, cycle_momentum=False)
        sgd = kdx.Ref("SGD", lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
        fit = {"optimizer": sgd, "schedule": one_cycle, "device": "cpu"}
        kdx.fit(kdx.Supervised(teacher), data.training(data.all, 128), epochs=TEACHER_EPOCHS, **fit)
        quality = evaluate(teacher, test)["accuracy"]
        for arm in ARMS:
            view = data.few.cycling(VIEWS)
            with tempfile.TemporaryDirectory() as folder:
                source: Teacher = Frozen(teacher)
                written, size = 0.0, 0.0
                if arm is not None:
                    start = time.process_time()
                    store: Store = write_store(folder, teacher, view, what=arm[0], dtype=arm[1], views=VIEWS, seed=seed)
                    written, size = time.process_time() - start, store.bytes / len(view) / VIEWS
                    source = Stored(store, teacher=teacher, data=view)
                torch.manual_seed(seed)
                student = kdx.make("model", "convnet", width=8, stages=2, grid=7, **data.shape)
                terms = {"kd": (0.9, kdx.SoftTargets(4.0))}
                scheme = kdx.Offline(student, source, task=(0.1, F.cross_entropy), knowledge=terms)
                scheme(Batch.of(next(iter(data.training(view, 64)))))  # whatever is loaded on first use
                start = time.process_time()
                kdx.fit(scheme, data.training(view, 64), epochs=EPOCHS, seed=seed, **fit)
                epoch = (time.process_time() - start) / EPOCHS
            row = {
                **{"arm": arm[0] if arm else "live", "dtype": arm[1] if arm else "", "seed": seed, "threads": 1},
                **{"epoch_s": round(epoch, 3), "write_s": round(written, 3), "bytes": round(size, 1)},
                **{
                    "test_accuracy": round(evaluate(student, test)["accuracy"], 4),
                    "teacher_accuracy": round(quality, 4),
                },
                **{name: conditions[name] for name in ("device", "torch", "commit", "date")},
            }
            rows.append(row)
            print(row, flush=True)
    FILE.parent.mkdir(parents=True, exist_ok=True)
    with FILE.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def table() -> str:
    """The committed rows as Markdown, means over seeds."""
    with FILE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [
        "| teacher | CPU s an epoch | vs live | written in, CPU s | bytes a sample and view | test accuracy, % |",
        "|---|---|---|---|---|---|",
    ]
    live = statistics.mean(float(row["epoch_s"]) for row in rows if row["arm"] == "live")
    for arm in ARMS:
        name, dtype = arm or ("live", "")
        mine = [row for row in rows if (row["arm"], row["dtype"]) == (name, dtype)]

        def mean(key: str, mine: list[dict[str, str]] = mine) -> float:
            return statistics.mean(float(row[key]) for row in mine)

        accuracy = [100 * float(row["test_accuracy"]) for row in mine]
        spread = statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0
        once = f"{mean('write_s'):.1f}" if arm else ""
        size = f"{mean('bytes'):.1f}" if arm else ""
        lines.append(
            f"| {name} {dtype} | {mean('epoch_s'):.2f} | {live / mean('epoch_s'):.2f}x | {once} | {size} | "
            f"{statistics.mean(accuracy):.1f} ± {spread:.1f} |"
        )
    return "\n".join(lines)
