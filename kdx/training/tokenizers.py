"""Models and data of one tokenizer: compared before anything is trained, where both say which it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from kdx.capture import unwrap
from kdx.schemes.base import Scheme
from kdx.teachers import Teacher
from kdx.training.batches import data_of

__all__ = ["check_tokenizers"]


def check_tokenizers(scheme: Scheme, train: Iterable[Any]) -> None:
    """Checks that the students and teachers of a scheme have the tokenizer of the data.

    A data set and a model say which tokenizer their token ids are of with an attribute ``tokenizer_id``, a hash of its
    vocabulary; nothing is compared with one that does not say. A teacher that sees another view of the data is left
    out, as that may be another tokenisation.

    Args:
        scheme: whose models are looked at.
        train: the loader.

    Raises:
        ValueError: two of them differ.
    """
    said = [("the data", getattr(data_of(train), "tokenizer_id", None))]
    said += [(f"{name} ({_kind(model)})", _id_of(model)) for name, model in scheme.students.items()]
    for path, part in scheme.named_modules():
        model = getattr(part, "model", None)
        if isinstance(part, Teacher) and isinstance(model, nn.Module) and getattr(part, "view", None) is None:
            said.append((f"{path or 'the teacher'} ({_kind(model)})", _id_of(model)))
    known = [(name, each) for name, each in said if each is not None]
    for name, each in known[1:]:
        if each != known[0][1]:
            raise ValueError(
                f"{name} has another tokenizer (tokenizer_id {each}) than {known[0][0]} ({known[0][1]}): the same ids "
                "are other tokens, so that nothing can be compared token by token. Take one of the same tokenizer; or "
                "let the teacher see the text in its own tokens, as a view, and compare with the knowledge 'alm' or "
                "'uld'"
            )


def _id_of(model: nn.Module) -> Any:
    return getattr(unwrap(model), "tokenizer_id", None)


def _kind(model: nn.Module) -> str:
    return type(unwrap(model)).__name__
