"""Deprecation: public names and options that work for now and will be removed."""

from __future__ import annotations

import warnings

from kdx.errors import KdxDeprecationWarning

__all__ = ["warn_deprecated"]


def warn_deprecated(
    what: str, *, since: str, removal: str, replacement: str | None = None, stacklevel: int = 2
) -> None:
    """Warns that the caller of the function that calls this uses something deprecated.

    Args:
        what: the name or option, as the user writes it.
        since: version of kdx that deprecated it.
        removal: version that removes it.
        replacement: what to write instead; None where nothing takes its place.
        stacklevel: 2 points at the line that called the function which calls this, 3 at its caller.

    Example:
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_deprecated("fit(steps_per_epoch=...)", since="0.2", removal="0.4", replacement="steps")
        >>> print(caught[0].message)
        fit(steps_per_epoch=...) is deprecated since kdx 0.2 and goes in 0.4; use steps
    """
    instead = f"use {replacement}" if replacement else "nothing takes its place"
    message = f"{what} is deprecated since kdx {since} and goes in {removal}; {instead}"
    warnings.warn(message, KdxDeprecationWarning, stacklevel=stacklevel + 1)
