"""A teacher that sees the student's pixels against one that was asked once about the images as they are."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from typing_extensions import override

import kdx
from kdx.capture import Captured
from kdx.datasets import Digits, ShiftFlip
from kdx.models import ConvNet
from kdx.teachers import Frozen, Teacher
from kdx.training.evaluation import evaluate


class Fixed(Teacher):
    """Answers from logits ``[N, C]`` that were computed once, whatever the view."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.answers = logits

    @override
    def tap(self, names) -> None:
        assert set(names) <= {"logits"}

    @override
    def forward(self, batch: kdx.Batch) -> Captured:
        return Captured({"logits": self.answers[batch.index]})


class Augmented:
    """Chosen rows in a new order and in new views each epoch; a loader that costs nothing."""

    def __init__(self, digits: Digits, rows: torch.Tensor, augment: ShiftFlip, size: int) -> None:
        self.inputs, self.targets = torch.stack([image for image, _ in digits]), digits.targets
        self.rows, self.augment, self.size, self.epoch = rows, augment, size, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.size)

    def __iter__(self):
        for rows in self.rows[torch.randperm(len(self.rows))].split(self.size):
            yield kdx.Batch(self.augment(self.inputs[rows], rows, self.epoch), self.targets[rows], rows)


@pytest.mark.slow
def test_a_student_learns_more_from_a_teacher_that_sees_its_view() -> None:
    """300 digits without labels, shifted by up to 2 pixels; pairs share teacher, rows, views, weights and order."""
    torch.set_num_threads(1)
    train, test = Digits("train"), Digits("test")
    inputs, unseen = (torch.stack([image for image, _ in split]) for split in (train, test))
    adam = {"name": "AdamW", "lr": 0.01}
    gains = []
    for seed in range(3):
        torch.manual_seed(seed)
        augment = ShiftFlip(2, 0.0, seed=seed)
        teacher, start = (ConvNet(width, stages=2, grid=2, input_shape=(1, 8, 8)) for width in (16, 8))
        alone = kdx.make("scheme", "supervised", teacher)
        everything = Augmented(train, torch.arange(len(train)), augment, 128)
        kdx.fit(alone, everything, epochs=8, seed=seed, optimizer=adam, device="cpu")
        teacher.eval()
        with torch.no_grad():
            fixed = Fixed(teacher(inputs))
        rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:300]
        accuracy = []
        for source in (Frozen(teacher), fixed):
            student = copy.deepcopy(start)
            scheme = kdx.Offline(student, source, task=None, knowledge={"kd": kdx.SoftTargets(1.0)})
            loader = Augmented(train, rows, augment, 64)
            kdx.fit(scheme, loader, epochs=40, seed=seed, optimizer=adam, device="cpu")
            accuracy.append(evaluate(student, [(unseen, test.targets)])["accuracy"])
        gains.append(100 * (accuracy[0] - accuracy[1]))
    assert sum(gains) / len(gains) > 0.5, gains
