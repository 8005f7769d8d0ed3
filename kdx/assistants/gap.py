"""Warnings about the gap between teacher and student, before it is bridged, and about a bridge that led nowhere."""

from __future__ import annotations

import math

__all__ = ["GapWarning", "NoGainWarning", "WeakTeacherWarning", "gap_warnings", "no_gain_warning"]

WIDEST = 15.0
"""Points of accuracy that one link of a chain may bridge before it is said; a rule of thumb of kdx."""


class WeakTeacherWarning(UserWarning):
    """The teacher is no better than the student alone, so there is little to distil."""


class GapWarning(UserWarning):
    """The gap between teacher and student is none, or wider than a chain can bridge."""


class NoGainWarning(UserWarning):
    """The distilled student ends below the student alone: to distil it did harm."""


def gap_warnings(
    name: str,
    teacher: float,
    student: float,
    *,
    links: int = 1,
    rows: int,
    chain: bool = True,
    share: bool = True,
    higher_is_better: bool = True,
) -> list[tuple[type[UserWarning], str]]:
    """The warnings to give before a teacher teaches a student.

    Args:
        name: of the teacher.
        teacher: its metric on validation, in percent if it is a share.
        student: the student's, trained alone.
        links: how many times knowledge is handed on; a chain of one assistant has 2.
        rows: number of validation rows, which says how well the two are told apart.
        chain: whether assistants stand between the two; without them only a weak teacher is worth a word.
        share: whether the metric is a share of the rows; of an error in the targets' unit nobody knows how wide a gap
            is, and only a weak teacher is worth a word.
        higher_is_better: whether more of the metric is better.

    Returns:
        Pairs of category and message, none if all is well.

    Example:
        >>> gap_warnings("teacher", 90.0, 80.0, links=2, rows=500)
        []
        >>> [category.__name__ for category, _ in gap_warnings("teacher", 70.0, 80.0, rows=500)]
        ['WeakTeacherWarning']
    """
    if (teacher < student) if higher_is_better else (teacher > student):
        theirs, own = (f"{value:.1f} %" if share else f"{value:.4g}" for value in (teacher, student))
        return [
            (
                WeakTeacherWarning,
                f"the {name} ({theirs} on validation) is weaker than the student ({own}); train it longer or take a "
                "larger one",
            )
        ]
    if not (share and higher_is_better):
        return []
    gap = teacher - student
    noise = _noise(teacher, student, rows)
    if chain and gap <= noise:
        return [
            (
                GapWarning,
                f"the {name} ({teacher:.1f} % on validation) is ahead of the student alone ({student:.1f} %) by no "
                f"more than the noise of {rows} rows ({noise:.1f} points); assistants have nothing to bridge",
            )
        ]
    if chain and gap / links > WIDEST:
        return [
            (
                GapWarning,
                f"the {name} ({teacher:.1f} % on validation) and the student alone ({student:.1f} %) are {gap:.1f} "
                f"points apart, {gap / links:.1f} for each of {links} links, more than a chain is likely to bridge "
                f"({WIDEST:.0f} a link); take more assistants or a larger student",
            )
        ]
    return []


def no_gain_warning(
    distilled: float, alone: float, *, rows: int, metric: str, share: bool = True, higher_is_better: bool = True
) -> str | None:
    """The warning to give at the end of a run whose distilled student is worse than the student alone, else None.

    Args:
        distilled: its metric on the test rows, in percent if it is a share.
        alone: that of the student alone.
        rows: number of test rows, which says how well the two are told apart.
        metric: its name in the report.
        share: whether the metric is a share of the rows; of others nobody knows the noise.
        higher_is_better: whether more of the metric is better.

    Example:
        >>> no_gain_warning(81.0, 80.0, rows=500, metric="accuracy") is None
        True
        >>> print(no_gain_warning(75.0, 80.0, rows=500, metric="accuracy").partition(";")[0])
        the distilled student (accuracy 75.00 % on test) ends below the student alone (80.00 %): a gain of -5.00 points
    """
    gain = distilled - alone if higher_is_better else alone - distilled
    if not gain < 0:
        return None
    ours, theirs, lost = (
        (f"{distilled:.2f} %", f"{alone:.2f} %", f"{gain:+.2f} points")
        if share
        else (f"{distilled:.4g}", f"{alone:.4g}", f"{gain:+.3g}")
    )
    noise = _noise(distilled, alone, rows) if share else 0.0
    what = (
        f"that is within the noise of {rows} rows ({noise:.2f} points), so compare over several seeds, as --seeds 0,1,2"
        if -gain <= noise
        else "take another temperature or weight, or a teacher that is further ahead"
    )
    return (
        f"the distilled student ({metric} {ours} on test) ends below the student alone ({theirs}): a gain of {lost}; "
        f"{what}"
    )


def _noise(one: float, other: float, rows: int) -> float:
    """The standard deviation, in points, of the difference of two shares of as many rows."""
    middle = min(max((one + other) / 200, 0.0), 1.0)
    return 100 * math.sqrt(2 * middle * (1 - middle) / rows)
