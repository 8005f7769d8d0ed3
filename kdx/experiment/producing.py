"""The model that a structure is made into, checked before anybody keeps it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from kdx import rng
from kdx.blame import blaming
from kdx.errors import KdxError, PlanError
from kdx.stage import Produced, Stage, Structure
from kdx.students.contract import Contract

if TYPE_CHECKING:
    from kdx.experiment.assembly import Assembly

__all__ = ["produce"]


def produce(assembly: Assembly, stage: Stage, structure: Structure) -> Produced:
    """Makes a structure into a model, with all of its weights if it gives some; the global random state stays.

    Args:
        assembly: what the structure looks at.
        stage: that trains the model; its seed and the recipe's are those of all that the structure draws.
        structure: of the stage.

    Raises:
        PlanError: it gave no :class:`kdx.assistants.Produced`, or other weights than its model has.
        StudentError: the model does not run on the data, or gives outputs of another shape than the task or the models
            before it have.
        ComponentError: it raised an error that is none of kdx's own.
    """
    with rng.isolated():
        torch.manual_seed(assembly.recipe.seed + stage.seed)
        try:
            produced: Any = structure.produce(assembly)
        except KdxError:
            raise
        except Exception:
            with blaming(f"stage {stage.name!r}: the structure", structure):
                raise
        if not isinstance(produced, Produced):
            raise PlanError(
                f"stage {stage.name!r}: {type(structure).__name__}.produce has to return kdx.assistants.Produced(Ref, "
                f"weights), got {produced!r}"
            )
        return _whole(assembly, stage, structure, produced)


def _whole(assembly: Assembly, stage: Stage, structure: Structure, produced: Produced) -> Produced:
    """The produced model with all of its weights, after it has run on an example."""
    model, example = assembly.build(produced.model, stage.name), assembly.example_of(stage.name)
    if assembly.task.one_class:
        Contract(example, (((1, assembly.data.shape["num_classes"]), torch.float32),)).check(model)
    elif before := (*structure.needs, *stage.teachers):  # outputs of another shape are those of the models before
        outputs = Contract.of(assembly.model(before[0]), assembly.example_of(before[0])).outputs
        Contract(example, outputs).check(model)
    if produced.weights is None:
        return produced
    try:
        model.load_state_dict(dict(produced.weights))
    except RuntimeError as error:
        raise PlanError(
            f"stage {stage.name!r}: the weights that {type(structure).__name__} gave are not those of the model "
            f"{produced.model.name!r} that it gave: {error}"
        ) from error
    return Produced(produced.model, model.state_dict())
