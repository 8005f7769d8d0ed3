"""Numbers that a caller gives, held to their kind and their range."""

from __future__ import annotations

import math
from numbers import Integral, Real

__all__ = ["check_number", "check_whole"]


def check_number(
    name: str,
    value: object,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    instead: str = "",
) -> float:
    """A finite number within its range, as a float.

    Args:
        name: of the option, with which the message begins.
        value: what came: an int, a float or a scalar of NumPy; a bool is none.
        above: what it must exceed.
        least: the smallest that it may be.
        below: what it must not reach.
        most: the largest that it may be.
        instead: what to do, at the end of the message.

    Raises:
        TypeError: it is no number.
        ValueError: it is NaN, infinite or out of range.

    Example:
        >>> check_number("weight", 2, least=0)
        2.0
        >>> check_number("temperature", float("nan"), above=0)
        Traceback (most recent call last):
            ...
        ValueError: temperature must be > 0 and finite, got nan
    """
    bounds = [
        f"{sign} {bound:g}"
        for sign, bound in ((">", above), (">=", least), ("<", below), ("<=", most))
        if bound is not None
    ]
    if (above is None and least is None) or (below is None and most is None):
        bounds.append("finite")
    message = f"{name} must be {' and '.join(bounds)}, got {value!r}" + (f"; {instead}" if instead else "")
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(message)
    number = float(value)
    low = (above is not None and not number > above) or (least is not None and not number >= least)
    high = (below is not None and not number < below) or (most is not None and not number <= most)
    if not math.isfinite(number) or low or high:
        raise ValueError(message)
    return number


def check_whole(name: str, value: object, *, least: int, instead: str = "") -> int:
    """A whole number that is not too small, as an int.

    Args:
        name: of the option, with which the message begins.
        value: what came: an int or an integer of NumPy; a bool or a float such as ``1.0`` is none.
        least: the smallest that it may be.
        instead: what to do, at the end of the message.

    Raises:
        TypeError: it is no integer.
        ValueError: it is too small.

    Example:
        >>> check_whole("epochs", 3, least=1)
        3
    """
    message = f"{name} must be an integer >= {least}, got {value!r}" + (f"; {instead}" if instead else "")
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(message)
    if value < least:
        raise ValueError(message)
    return int(value)
