"""Metrics that say in which direction they are better."""

from __future__ import annotations

__all__ = ["Highest", "Lowest", "more_is_better"]


class Highest(str):
    """A metric of which more is better, for a metric that does not say so itself.

    Example:
        >>> Highest("psnr")
        Highest('psnr')
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({super().__repr__()})"


class Lowest(Highest):
    """A metric of which less is better, as an error.

    Example:
        >>> more_is_better(Lowest("mse"), None)
        False
    """

    __slots__ = ()


def more_is_better(metric: str, known: bool | None) -> bool:
    """Whether a metric is to be high.

    Args:
        metric: its name; a :class:`Highest` or :class:`Lowest` decides.
        known: its ``higher_is_better``, as metrics of torchmetrics have it; None: nobody said.

    Raises:
        ValueError: it is not known.
    """
    if isinstance(metric, Highest):
        return not isinstance(metric, Lowest)
    if known is None:
        raise ValueError(
            f"the metric {metric!r} does not say whether more of it is better (it has no higher_is_better); write "
            f"kdx.Highest({str(metric)!r}) or kdx.Lowest({str(metric)!r})"
        )
    return known
