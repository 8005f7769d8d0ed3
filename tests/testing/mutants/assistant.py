"""Assistants with one defect each; what they inherit is sound."""

from __future__ import annotations

import torch
from torch import nn

import kdx
from kdx import Ref
from kdx.stage import Stage


class Plan(kdx.Assistant):
    """One model between teacher and student."""

    def plan(self, teacher, student):
        middle = Ref(student.name, width=4)
        return [
            Stage("assistant", "distilled", middle, ("teacher",)),
            Stage("distilled", "distilled", student, ("assistant",)),
        ]


class EndsEarly(Plan):
    caught_by = "plan_ends_with_the_student"

    def plan(self, teacher, student):
        return super().plan(teacher, student)[:1]


class TaughtByTheFuture(Plan):
    caught_by = "teachers_come_first"

    def plan(self, teacher, student):
        first, last = super().plan(teacher, student)
        return [Stage("assistant", "distilled", first.model, ("distilled",)), last]


class Random(Plan):
    caught_by = "deterministic"

    def plan(self, teacher, student):
        last = super().plan(teacher, student)[1]
        state = torch.get_rng_state()
        width = torch.randint(1000, ()).item()
        torch.set_rng_state(state)
        return [Stage("assistant", "distilled", Ref("convnet", width=width), ("teacher",)), last]


class BuildsModels(Plan):
    caught_by = "moves_no_weights"

    def plan(self, teacher, student):
        state = torch.get_rng_state()
        nn.Linear(2, 2)
        torch.set_rng_state(state)
        return super().plan(teacher, student)


MUTANTS = [EndsEarly, TaughtByTheFuture, Random, BuildsModels]
