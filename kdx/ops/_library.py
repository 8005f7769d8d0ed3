"""Registration with torch.library: each op once, functional, with a schema and a fake; autograd lives in the ops' api.

The implementations choose their backend when they run, so a traced graph holds one op whatever the machine has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["define"]

_LIBRARY: Any = torch.library.Library("kdx", "DEF")  # type: ignore[no-untyped-call]  # torch has no annotation here


def define(schema: str, impl: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register ``kdx::<schema>`` with one implementation for every device and the shapes of its results.

    Args:
        schema: for example ``"scale_grad(Tensor grad, Tensor upstream, str backend) -> Tensor"``.
        impl: the implementation; it returns fresh tensors and changes none of its arguments.
        fake: the same signature on tensors without data.

    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, impl, "CompositeExplicitAutograd")
    torch.library.register_fake(f"kdx::{name}", fake, lib=_LIBRARY)
