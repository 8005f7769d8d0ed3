"""Splits that are the same for the same seed: training and validation rows, few labels."""

from __future__ import annotations

import torch
from torch import Tensor

from kdx.batch import IGNORE

__all__ = ["few_labels", "train_validation_split"]


def train_validation_split(targets: Tensor, validation: int = 500, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Split rows into a training and a validation part with the same share of every class.

    Each class gives the whole part of its share to the validation rows; the rows still missing come one each from the
    classes with the largest remainders.

    Args:
        targets: class of every row, int64, ``[N]``, none negative (split first, hide labels afterwards).
        validation: number of validation rows, ``1 .. N - 1``.
        seed: another seed gives other rows.

    Returns:
        Training and validation rows, int64, ``[N - validation]`` and ``[validation]``, both ascending.

    Raises:
        TypeError: ``targets`` is not an integer tensor.
        ValueError: ``targets`` is not one-dimensional or has a negative class, or ``validation`` is out of range.

    Example:
        >>> import torch
        >>> train, val = train_validation_split(torch.tensor([0, 0, 0, 0, 1, 1]), validation=3)
        >>> len(train), torch.tensor([0, 0, 0, 0, 1, 1])[val].tolist()
        (3, [0, 0, 1])

    """
    _check_targets(targets)
    if bool((targets < 0).any()):
        raise ValueError("targets must not be negative here: split the rows first, then hide labels with few_labels")
    if not 0 < validation < len(targets):
        raise ValueError(f"validation must be between 1 and {len(targets) - 1} (rows minus one); got {validation}")
    members = _shuffled_classes(targets, seed)
    held_out = _in_shares(members, validation).sort().values
    is_train = torch.ones(len(targets), dtype=torch.bool)
    is_train[held_out] = False
    return is_train.nonzero().squeeze(1), held_out


def few_labels(targets: Tensor, labelled: int = 500, seed: int = 0, *, balanced: bool = True) -> Tensor:
    """Keep ``labelled`` labels, the same number of every class or in the classes' shares, and hide the others.

    Args:
        targets: class of every row, int64, ``[N]``; rows that are already hidden (negative) stay hidden.
        labelled: number of rows that keep their label; if ``balanced``, a multiple of the number of classes that occur.
        seed: another seed keeps other labels.
        balanced: keeps equally many labels of every class. False keeps each class's share, rounded by largest
            remainder, so that a rare class may keep none.

    Returns:
        A copy of ``targets``, int64, ``[N]``, with -100 in every row whose label is hidden.

    Raises:
        TypeError: ``targets`` is not an integer tensor.
        ValueError: ``targets`` is not one-dimensional, there are fewer than ``labelled`` labels, or, if ``balanced``,
            ``labelled`` is no positive multiple of the number of classes or a class has too few rows.

    Example:
        >>> import torch
        >>> few_labels(torch.tensor([0, 1, 0, 1, 0, 1]), labelled=2).sort().values
        tensor([-100, -100, -100, -100,    0,    1])

    """
    _check_targets(targets)
    members = _shuffled_classes(targets, seed)
    kept = _equally_many(members, labelled) if balanced else _in_shares(members, labelled)
    result = torch.full_like(targets, IGNORE)
    result[kept] = targets[kept]
    return result


def _equally_many(members: list[Tensor], count: int) -> Tensor:
    """The first rows of every class, ``count`` in all."""
    if count < 1 or not members or count % len(members):
        raise ValueError(
            f"labelled must be a positive multiple of the number of classes, {len(members)}, so that every class "
            f"keeps equally many labels; got {count}. With balanced=False (in a recipe data.balanced: false) classes "
            "keep their shares of any number"
        )
    each = count // len(members)
    smallest = min(len(rows) for rows in members)
    if each > smallest:
        raise ValueError(
            f"labelled={count} needs {each} rows of every class, but one class has {smallest}; "
            f"use at most {smallest * len(members)}, or balanced=False (in a recipe data.balanced: false), with which "
            "classes keep their shares"
        )
    return torch.cat([rows[:each] for rows in members])


def _in_shares(members: list[Tensor], count: int) -> Tensor:
    """The first rows of every class in proportion to its size, ``count`` in all."""
    total = sum(len(rows) for rows in members)
    if not 1 <= count <= total:
        raise ValueError(f"labelled must be between 1 and the number of labelled rows, {total}; got {count}")
    shares = [len(rows) * count / total for rows in members]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(members)), key=lambda k: counts[k] - shares[k])
    for k in by_remainder[: count - sum(counts)]:
        counts[k] += 1
    return torch.cat([rows[:count] for rows, count in zip(members, counts, strict=True)])


def _check_targets(targets: Tensor) -> None:
    if targets.dtype != torch.int64:
        raise TypeError(f"targets must be int64 class numbers; got {targets.dtype}")
    if targets.dim() != 1:
        raise ValueError(f"targets must have one dimension [N]; got shape {list(targets.shape)}")


def _shuffled_classes(targets: Tensor, seed: int) -> list[Tensor]:
    """The rows of each class that occurs, in an order drawn from ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(targets), generator=generator)  # [N]
    shuffled = targets.cpu()[order]
    return [order[shuffled == label] for label in torch.unique(shuffled).tolist() if label >= 0]
