"""How far the judgements of a supernet order its sub-networks as training them alone does, on Fashion-MNIST.

``python plugins/kdx-search/measure_ranking.py --seeds 0 1 2`` writes ``results/ranking.json`` after every piece and
goes on from there; ``--table`` prints what is there. One teacher; of every seed a supernet, a block-wise supernet, and
every sub-network distilled by itself from new weights. On shared weights they are judged on validation rows, trained
alone on test rows.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kdx_search import Agreement, BlockWise, Space, SubNetwork, Supernet, agreement, recalibrate
from torch.utils.data import DataLoader, Subset

import kdx
from kdx.students import StudentConfig, build
from kdx.training import evaluate, export_weights, load_weights

FILE = Path(__file__).parent / "results" / "ranking.json"
WEIGHTS = Path("runs") / "ranking" / "teacher.safetensors"
TEACHER = {"name": "convnet", "width": 24}
LARGEST = {"name": "convnet", "width": 8, "stages": 3, "depth": 2, "grid": 2}
BLOCKS = {"stage1": "stage1", "stage2": "stage2", "stage3": "stage3"}
COUNT, ROWS, VALIDATION, BATCH = 12, 1500, 1000, 64
EPOCHS = {"teacher": 5, "supernet": 12, "blocks": 8, "alone": 6}
PROXIES = {
    "weights": "accuracy on the supernet's weights, norms measured anew",
    "stale": "the same with the norms of the largest",
    "blocks": "loss of the blocks (DNA)",
    "flops": "operations alone",
    "parameters": "parameters alone",
}


def optimised(epochs: int, **more: Any) -> dict[str, Any]:
    """The arguments of every run."""
    return {
        "epochs": epochs,
        "optimizer": kdx.Ref("SGD", lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4),
        "schedule": kdx.Ref("OneCycleLR", max_lr=0.05, pct_start=0.2, cycle_momentum=False),
        "device": "cpu",
        "progress": False,
        **more,
    }


class Measurement:
    """The rows, the teacher and the sub-networks; what was measured is written to a file piece by piece.

    Args:
        file: of the results.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        train, test = (kdx.make("dataset", "fashion-mnist", split=split) for split in ("train", "test"))
        rows = len(train) - VALIDATION
        self.rows = Subset(train, range(ROWS))
        self.validation = list(DataLoader(Subset(train, range(rows, len(train))), batch_size=500))
        self.test = list(DataLoader(test, batch_size=500))
        self.calibration = list(DataLoader(Subset(train, range(1280)), batch_size=128))
        torch.manual_seed(0)
        self.teacher = kdx.make("model", TEACHER["name"], **{k: v for k, v in TEACHER.items() if k != "name"})
        taught = Subset(train, range(rows))  # the teacher sees more
        self.train_teacher(DataLoader(taught, batch_size=128, shuffle=True))
        self.keep("teacher", lambda: evaluate(self.teacher, self.test)["accuracy"])
        self.space = Space.of(self.largest(0), torch.zeros(2, 1, 28, 28))
        generator = random.Random(0)
        self.choices: list[dict[str, int]] = []
        while len(self.choices) < COUNT:
            choice = self.space.canonical(self.space.sample(generator))
            if choice not in self.choices:
                self.choices.append(choice)
        costs = [self.space.cost(choice) for choice in self.choices]
        self.found["choices"] = self.choices
        self.found["flops"], self.found["parameters"] = [c.flops for c in costs], [c.parameters for c in costs]

    def train_teacher(self, loader: DataLoader[Any]) -> None:
        """Trains the teacher, or reads it where an earlier call has."""
        if not WEIGHTS.exists():
            kdx.fit(kdx.Supervised(self.teacher), loader, **optimised(EPOCHS["teacher"], seed=0))
            WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
            export_weights(self.teacher, WEIGHTS)
        load_weights(self.teacher, WEIGHTS)

    def loader(self) -> DataLoader[Any]:
        """The training rows, shuffled."""
        return DataLoader(self.rows, batch_size=BATCH, shuffle=True)

    def largest(self, seed: int) -> torch.nn.Module:
        """A new largest sub-network."""
        torch.manual_seed(seed)
        return kdx.make("model", LARGEST["name"], **{k: v for k, v in LARGEST.items() if k != "name"})

    def keep(self, name: str, measure: Callable[[], Any]) -> None:
        """Measures what is not there yet, and writes it."""
        if name in self.found:
            return
        start = time.monotonic()
        self.found[name] = measure()
        self.found.setdefault("seconds", {})[name] = round(time.monotonic() - start, 1)
        self.file.parent.mkdir(exist_ok=True)
        self.file.write_text(json.dumps(self.found, indent=1) + "\n")
        print(name, self.found[name] if not isinstance(self.found[name], dict) else "done", flush=True)

    def supernet(self, seed: int) -> dict[str, list[float]]:
        """The accuracies of the sub-networks on shared weights."""
        knowledge = {"kd": (0.9, kdx.SoftTargets(4.0))}
        scheme = Supernet(
            self.largest(seed),
            self.teacher,
            task=(0.1, kdx.make("task", "classification")),
            knowledge=knowledge,
            seed=seed,
        )
        kdx.fit(scheme, self.loader(), **optimised(EPOCHS["supernet"], seed=seed))
        scheme.student.eval()
        found: dict[str, list[float]] = {"weights": [], "stale": []}
        for choice in self.choices:
            part = SubNetwork(scheme.space, choice, scheme.student)
            found["stale"].append(evaluate(part, self.validation)["accuracy"])
            recalibrate(part, self.calibration)
            found["weights"].append(evaluate(part, self.validation)["accuracy"])
        return found

    def block_wise(self, seed: int) -> list[float]:
        """Minus the summed losses of the blocks."""
        scheme = BlockWise(self.largest(seed), self.teacher, blocks=BLOCKS, seed=seed)
        kdx.fit(scheme, self.loader(), **optimised(EPOCHS["blocks"], seed=seed))
        return [-sum(scheme.rate(choice, self.validation).values()) for choice in self.choices]

    def alone(self, number: int, seed: int) -> float:
        """The accuracy of a sub-network that was distilled by itself."""
        edits = self.space.edits(self.choices[number])
        torch.manual_seed(seed)
        student = build(StudentConfig(base=LARGEST, edits=edits).model_dump())
        scheme = kdx.Offline(
            student,
            self.teacher,
            task=(0.1, kdx.make("task", "classification")),
            knowledge={"kd": (0.9, kdx.SoftTargets(4.0))},
        )
        kdx.fit(scheme, self.loader(), **optimised(EPOCHS["alone"], seed=seed))
        return evaluate(student, self.test)["accuracy"]

    def run(self, seeds: list[int], pieces: list[str]) -> None:
        """Measures what is left of every seed."""
        for seed in seeds:
            if "supernet" in pieces:
                self.keep(f"supernet-{seed}", lambda seed=seed: self.supernet(seed))  # type: ignore[misc]
            if "blocks" in pieces:
                self.keep(f"blocks-{seed}", lambda seed=seed: self.block_wise(seed))  # type: ignore[misc]
            for number in range(COUNT) if "alone" in pieces else ():
                self.keep(f"alone-{number}-{seed}", lambda n=number, seed=seed: self.alone(n, seed))  # type: ignore[misc]


def table(found: dict[str, Any]) -> str:
    """The rank correlations as a table in Markdown."""
    truths = [
        [found[f"alone-{number}-{seed}"] for number in range(COUNT)]
        for seed in range(100)
        if f"alone-{COUNT - 1}-{seed}" in found
    ]
    truth = [statistics.mean(values) for values in zip(*truths, strict=True)]
    lines = [
        f"{COUNT} sub-networks; trained alone with {len(truths)} seeds: {min(truth):.1%} to {max(truth):.1%}, teacher "
        f"{found['teacher']:.1%}.",
        "",
        "| judged by | seeds | Kendall's tau [95 %] | p | of each seed |",
        "|---|---|---|---|---|",
    ]
    for proxy, what in PROXIES.items():
        supernets = [found[name] for name in sorted(found) if name.startswith("supernet-")]
        shared = [one[proxy] for one in supernets if proxy in one]
        blocks = [found[name] for name in sorted(found) if name.startswith("blocks-") and proxy == "blocks"]
        each = shared or blocks or [found[proxy]]
        mean = [statistics.mean(values) for values in zip(*each, strict=True)]
        lines.append(_line(what, len(each) if proxy not in found else None, agreement(mean, truth), each, truth))
    if len(truths) > 1:
        lines.append(_line("training alone, one seed by another", 1, agreement(*truths[:2]), [], truth))
    return "\n".join(lines)


def _line(what: str, seeds: int | None, whole: Agreement, each: list[list[float]], truth: list[float]) -> str:
    parts = ", ".join(f"{agreement(one, truth, resamples=1).tau:.2f}" for one in each) if len(each) > 1 else ""
    interval = f"{whole.tau:.2f} [{whole.low:.2f}, {whole.high:.2f}]"
    return f"| {what} | {seeds or '-'} | {interval} | {whole.p_value:.2g} | {parts} |"


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--pieces", nargs="*", default=["supernet", "blocks", "alone"], help="of every seed")
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.table:
        Measurement(FILE).run(options.seeds, options.pieces)
    print(table(json.loads(FILE.read_text())))


if __name__ == "__main__":
    main()
