"""Warnings about the gap between a teacher and a student: none to bridge, or too wide for one step."""

from __future__ import annotations

import math

__all__ = ["GapWarning", "WeakTeacherWarning", "gap_warnings"]

WIDEST = 15.0
"""Points of accuracy that one link of a chain may bridge before it is said; a rule of thumb of kdx."""


class WeakTeacherWarning(UserWarning):
    """The teacher is no better than the student alone, so there is little to distil."""


class GapWarning(UserWarning):
    """The gap between teacher and student is none, or wider than a chain can bridge."""


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
    middle = min(max((teacher + student) / 200, 0.0), 1.0)
    noise = 100 * math.sqrt(2 * middle * (1 - middle) / rows)
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
