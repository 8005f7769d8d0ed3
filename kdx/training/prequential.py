"""Prequential evaluation: every new batch first tests the models, then trains them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from kdx import rng
from kdx.batch import Batch
from kdx.capture import call
from kdx.modes import evaluating
from kdx.schemes.base import Scheme
from kdx.schemes.task_count import responses_of

__all__ = ["Prequential"]


class Prequential:
    """Accuracy of a scheme's students on data that they have not been trained on yet: test, then train.

    On a stream that never repeats a sample this needs no held-out set and follows the models over time. Where samples
    repeat it flatters them. Rows without a label do not count.

    Args:
        scheme: its students are tested in evaluation mode, without gradient, each on the batch that comes next.

    Paper: Gama, Sebastião, Rodrigues, On evaluating stream learning algorithms, Machine Learning 2013,
    https://doi.org/10.1007/s10994-012-5320-9; windows as there, each from one logged step to the next.
    """

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme
        self._counts: dict[str, Tensor] = {}  # name -> int64 [4]: hits and rows of the window, of all
        """Counts stay on the device until :meth:`row`, so that no step waits for them."""

    def test(self, batches: Iterable[Batch]) -> None:
        """Tests every student on the batches of the next step.

        Raises:
            ValueError: targets that are no class numbers.
        """
        students = self.scheme.students
        with rng.isolated(), evaluating(*students.values()), torch.no_grad():
            for batch in batches:
                targets: Any = batch.targets
                if not isinstance(targets, Tensor) or targets.dim() != 1 or targets.dtype != torch.int64:
                    came = type(targets).__name__
                    if isinstance(targets, Tensor):
                        came = f"{targets.dtype} of shape {list(targets.shape)}"
                    raise ValueError(
                        "prequential evaluation measures accuracy and needs class numbers as targets, int64 [N], got "
                        f"{came}; turn it off for other tasks"
                    )
                known = targets != responses_of(self.scheme.task).ignored
                for name, student in students.items():
                    logits = self.scheme.reader(name)(call(student, batch.inputs))
                    hits = ((logits.argmax(1) == targets) & known).sum()
                    seen = torch.stack([hits, known.sum()]).repeat(2)
                    self._counts[name] = self._counts[name].to(seen.device) + seen if name in self._counts else seen

    def row(self) -> dict[str, float]:
        """``prequential/<student>``: the accuracy since the last call; ``.../so_far``: since the first step."""
        row = {}
        for name, counts in self._counts.items():
            window_hits, window_rows, hits, rows = counts.tolist()
            row[f"prequential/{name}"] = window_hits / window_rows if window_rows else float("nan")
            row[f"prequential/{name}/so_far"] = hits / rows if rows else float("nan")
            self._counts[name] = counts * counts.new_tensor([0, 0, 1, 1])
        return row

    def state_dict(self) -> dict[str, Tensor]:
        """The counts."""
        return dict(self._counts)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from saved counts."""
        self._counts = dict(state)
