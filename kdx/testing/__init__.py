"""The conformance kit: checks that every component, plugin and kernel has to pass.

``check_*`` runs every check of an object and raises :class:`CheckFailed` with what it found; ``parametrize_checks``
gives one pytest id per check::

    @kdx.testing.parametrize_checks(MyLoss(), tags=KnowledgeTags(zero_when_equal=True))
    def test_conformance(check):
        check()

A check is a function whose docstring is the sentence that must hold. It works on copies, draws its inputs with a fixed
seed and leaves the object as it is. What applies is declared by tags; what is known not to hold goes into
``expected_failures`` with a reason, and is an error once it does hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdx.lazy import exports

if TYPE_CHECKING:
    from kdx.testing.assistant import check_assistant as check_assistant
    from kdx.testing.check import Check as Check
    from kdx.testing.check import CheckFailed as CheckFailed
    from kdx.testing.knowledge import check_knowledge as check_knowledge
    from kdx.testing.op import check_op as check_op
    from kdx.testing.op_subject import OpTags as OpTags
    from kdx.testing.parametrize import checks_of as checks_of
    from kdx.testing.parametrize import parametrize_checks as parametrize_checks
    from kdx.testing.plugin import check_plugin as check_plugin
    from kdx.testing.scheme import check_scheme as check_scheme
    from kdx.testing.student import check_student as check_student
    from kdx.testing.tags import KnowledgeTags as KnowledgeTags
    from kdx.testing.tags import SchemeTags as SchemeTags
    from kdx.testing.tags import StudentTags as StudentTags
    from kdx.testing.tags import TaskTags as TaskTags
    from kdx.testing.task import check_task as check_task
    from kdx.testing.toys import toy_batches as toy_batches
    from kdx.testing.toys import toy_model as toy_model
    from kdx.testing.toys import toy_teacher as toy_teacher
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "kdx.testing.assistant": ["check_assistant"],
            "kdx.testing.check": ["Check", "CheckFailed"],
            "kdx.testing.knowledge": ["check_knowledge"],
            "kdx.testing.op": ["check_op"],
            "kdx.testing.op_subject": ["OpTags"],
            "kdx.testing.parametrize": ["checks_of", "parametrize_checks"],
            "kdx.testing.plugin": ["check_plugin"],
            "kdx.testing.scheme": ["check_scheme"],
            "kdx.testing.student": ["check_student"],
            "kdx.testing.tags": ["KnowledgeTags", "SchemeTags", "StudentTags", "TaskTags"],
            "kdx.testing.task": ["check_task"],
            "kdx.testing.toys": ["toy_batches", "toy_model", "toy_teacher"],
        },
    )
