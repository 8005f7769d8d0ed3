"""Derivations with one defect each; what they inherit is sound."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from kdx.students import Derivation, Edit, Origin, Plan


class NoBias(Edit):
    """Takes the biases of layers away."""

    how: Literal["no-bias"] = "no-bias"
    layers: list[str]

    def build(self, model):
        for name in self.layers:
            model.get_submodule(name).register_parameter("bias", None)

    def derive(self, model, inputs):
        self.build(model)
        return {}


class Sound(Derivation):
    """Takes the biases of layers away, those of the first layers first."""

    edit = NoBias

    def plan(self, model, inputs):
        layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        return Plan(len(layers) + 1, lambda place: self.edit(layers=layers[: len(layers) - place]), [])


class Undocumented(Sound):
    caught_by = "documented"


class NoStudent(Sound):
    caught_by = "plan"

    def plan(self, model, inputs):
        return Plan(1, lambda place: NoBias(layers=[]), [])


class ChangesTheTeacher(Sound):
    caught_by = "teacher_unchanged"

    def plan(self, model, inputs):
        plan = super().plan(model, inputs)
        with torch.no_grad():
            model.fc.weight.mul_(2)
        return plan


class LeavesGradients(Sound):
    caught_by = "teacher_unchanged"

    def plan(self, model, inputs):
        model.fc.weight.sum().backward()
        return super().plan(model, inputs)


class Backwards(Sound):
    caught_by = "rising_cost"

    def plan(self, model, inputs):
        plan = super().plan(model, inputs)
        return Plan(plan.settings, lambda place: plan.edit(plan.settings - 1 - place), [])


class NeverTheTeacher(Sound):
    caught_by = "ends_with_the_teacher"

    def plan(self, model, inputs):
        plan = super().plan(model, inputs)
        return Plan(plan.settings - 1, plan.edit, [])


class LosesClasses(NoBias):
    def derive(self, model, inputs):
        if self.layers:
            model.fc = nn.Linear(32, 2)
        return super().derive(model, inputs)


class BreaksTheContract(Sound):
    caught_by = "contract"
    edit = LosesClasses


class BuildsNothing(NoBias):
    def build(self, model):
        pass

    def derive(self, model, inputs):
        NoBias.build(self, model)
        return {}


class BuiltOtherwise(Sound):
    caught_by = "built_alike"
    edit = BuildsNothing


class Redraws(NoBias):
    def derive(self, model, inputs):
        model.fc.reset_parameters()
        return super().derive(model, inputs)


class Silent(Sound):
    caught_by = "origins"
    edit = Redraws


class Invents(NoBias):
    def derive(self, model, inputs):
        return {**super().derive(model, inputs), "no.weight": Origin("sliced", (1,), (2,))}


class InventsOrigins(Sound):
    caught_by = "origins"
    edit = Invents


class Forgetful(NoBias):
    def model_dump_json(self, **options):
        return NoBias(layers=[]).model_dump_json(**options)


class LosesItsLayers(Sound):
    caught_by = "written_down"
    edit = Forgetful


class Whimsical(Sound):
    caught_by = "deterministic"

    def plan(self, model, inputs):
        layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        drawn = [layers[place] for place in torch.randperm(len(layers)).tolist()]
        return Plan(len(drawn) + 1, lambda place: NoBias(layers=drawn[: len(drawn) - place]), [])


class Reacts(NoBias):
    def derive(self, model, inputs):
        if self.layers:
            model.act = nn.Tanh()  # build leaves the ReLU, which has no weights either
        return super().derive(model, inputs)


class RebuiltOtherwise(Sound):
    caught_by = "rebuilt"
    edit = Reacts


class Freezes(NoBias):
    def derive(self, model, inputs):
        model.fc.weight.requires_grad_(False)
        return super().derive(model, inputs)


class FreezesSilently(Sound):
    caught_by = "trainable"
    edit = Freezes


class Aside(nn.Module):
    """Has a parameter that no output depends on."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.step = inner, nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.inner(x)


class LeavesAParameterAside(Sound):
    caught_by = "trainable"

    class Edit(NoBias):
        def derive(self, model, inputs):
            model.act = Aside(model.act)
            return super().derive(model, inputs)

    edit = Edit


class Undecided(nn.Module):
    """Takes a way that depends on the values."""

    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


class CannotBeExported(Sound):
    caught_by = "exportable"

    class Edit(NoBias):
        def build(self, model):
            model.act = Undecided()
            super().build(model)

    edit = Edit


MUTANTS = [
    Undocumented,
    NoStudent,
    ChangesTheTeacher,
    LeavesGradients,
    Backwards,
    NeverTheTeacher,
    BreaksTheContract,
    BuiltOtherwise,
    Silent,
    InventsOrigins,
    LosesItsLayers,
    Whimsical,
    RebuiltOtherwise,
    FreezesSilently,
    LeavesAParameterAside,
    CannotBeExported,
]
