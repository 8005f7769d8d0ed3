"""A derived student in a recipe: made when its teacher is trained."""

from __future__ import annotations

import inspect
from typing import Any

from kdx.ref import Ref
from kdx.registry import Plugins
from kdx.stage import FinishedStages, Produced, Structure
from kdx.students.derived import derived

__all__ = ["DerivedStudent", "structure_of"]


class DerivedStudent(Structure):
    """Derives the student from the stage ``teacher``.

    Args:
        options: of the model component ``derived``, see :func:`kdx.students.derived.derived`.
    """

    needs = ("teacher",)

    def __init__(self, options: dict[str, Any]) -> None:
        self.inherit = bool(options.get("inherit", True))
        self.options = {name: value for name, value in options.items() if name not in ("inherit", "config")}

    def produce(self, finished: FinishedStages) -> Produced:
        """See :meth:`kdx.assistants.Structure.produce`."""
        from kdx.students.contract import Contract  # every plan imports this module, and few derive a student
        from kdx.students.deriving import derive
        from kdx.students.student_data import StudentData

        teacher, ref = finished.model("teacher"), finished.ref("teacher")
        example = finished.example.repeat(2, *[1] * (finished.example.dim() - 1))
        ((shape, _dtype),) = Contract.of(teacher, example).outputs
        sizes = {"num_classes": shape[-1], "input_shape": list(example.shape[1:])}
        rows, held_out = finished.batches("few"), finished.batches("validation")
        data = StudentData(rows, task=finished.task, validation=held_out)
        student = derive(teacher, example, base=ref.as_dict(), shape=sizes, data=data, **self.options)
        assert student.config is not None
        model = Ref("derived", config=student.config.model_dump(mode="json"))
        return Produced(model, student.model.state_dict() if self.inherit else None)


def structure_of(model: Ref | Structure, plugins: Plugins) -> Ref | Structure:
    """The structure that a model's name stands for, which its stage makes, or the model as it is.

    A model component that is a subclass of :class:`kdx.assistants.Structure` is built with the recipe's options;
    ``derived`` with ``how`` is made from the teacher.

    Args:
        model: of a stage.
        plugins: where components come from.

    Raises:
        TypeError: the structure refuses its options.
    """
    if isinstance(model, Structure):
        return model
    component = plugins.load("model", model.name)
    if inspect.isclass(component) and issubclass(component, Structure):
        made: Structure = plugins.make("model", model)
        return made
    if component is derived and model.options.get("how") is not None:
        return DerivedStudent(model.options)
    return model
