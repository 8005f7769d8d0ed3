"""The conformance kit: what a component, a plugin or a kernel of anyone has to stand.

``check_*`` runs every check of an object and raises :class:`CheckFailed` with what it found; ``parametrize_checks``
gives one pytest id per check::

    @kdx.testing.parametrize_checks(MyLoss(), tags=KnowledgeTags(zero_when_equal=True))
    def test_conformance(check):
        check()

A check is a function whose docstring is the sentence that must hold. It works on copies, draws its inputs with a fixed
seed and leaves the object as it is. What applies is declared by tags; what is known not to hold goes into
``expected_failures`` with a reason, and is an error once it does hold.
"""

from kdx.testing.assistant import check_assistant
from kdx.testing.check import Check, CheckFailed
from kdx.testing.knowledge import check_knowledge
from kdx.testing.op import check_op
from kdx.testing.op_subject import OpTags
from kdx.testing.parametrize import checks_of, parametrize_checks
from kdx.testing.plugin import check_plugin
from kdx.testing.scheme import check_scheme
from kdx.testing.tags import KnowledgeTags, SchemeTags
from kdx.testing.toys import toy_batches, toy_model

__all__ = [
    "Check",
    "CheckFailed",
    "KnowledgeTags",
    "OpTags",
    "SchemeTags",
    "check_assistant",
    "check_knowledge",
    "check_op",
    "check_plugin",
    "check_scheme",
    "checks_of",
    "parametrize_checks",
    "toy_batches",
    "toy_model",
]
