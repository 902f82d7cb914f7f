"""From the categories of an annotation file to the labels of a task."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Classes = dict[str, "str | list[str]"] | list[str]
Unmatched = Literal["raise", "ignore", "drop"]

DROPPED, IGNORED = 0, -1


@dataclass(frozen=True)
class LabelTable:
    """The classes of a task.

    Attributes:
        names: Names of labels 1..C.
        labels: Label of each category ``(K,)`` int64: 1..C, 0 for categories that are left out, -1 for ignored ones.
        unmatched: Positions of the categories that belong to no class and must not occur.
    """

    names: tuple[str, ...]
    labels: Tensor
    unmatched: tuple[int, ...] = ()


def label_table(
    owner: str,
    task: str,
    categories: Sequence[str],
    classes: Mapping[str, str | list[str]] | Sequence[str] | None,
    unmatched: Unmatched,
) -> LabelTable:
    """Return the classes of a task over the categories of a file.

    Args:
        owner: Name of the data module, for the error.
        task: Name of the task, for the error.
        categories: Names of the categories, in the order of their ids.
        classes: Class -> pattern or patterns, regular expressions that match the whole name of a category; or the names
            of the categories that count; None takes every category. Labels follow the order given.
        unmatched: What becomes of categories in no class.

    Raises:
        ValueError: If a class matches no category, or a category belongs to two classes.

    Example:
        >>> pieces = ["white-king", "black-king", "white-pawn"]
        >>> table = label_table("Chess", "kind", pieces, {"king": ".*-king", "pawn": ".*-pawn"}, "raise")
        >>> table.names, table.labels.tolist()
        (('king', 'pawn'), [1, 1, 2])
    """
    if classes is None:
        return LabelTable(tuple(categories), torch.arange(1, len(categories) + 1))
    if not isinstance(classes, Mapping):
        classes = {name: re.escape(name) for name in classes}
    labels = torch.full((len(categories),), IGNORED if unmatched == "ignore" else DROPPED)
    owners: dict[int, str] = {}
    for label, (name, patterns) in enumerate(classes.items(), start=1):
        matches = [
            position
            for position, category in enumerate(categories)
            if any(
                _full_match(owner, task, p, category) for p in ([patterns] if isinstance(patterns, str) else patterns)
            )
        ]
        if not matches:
            raise ValueError(
                f"{owner}: label_maps['{task}']['{name}'] must match a category, got {patterns!r}; "
                f"the categories are {', '.join(categories)}."
            )
        for position in matches:
            if position in owners:
                raise ValueError(
                    f"{owner}: label_maps['{task}'] must put a category into one class, got "
                    f"'{categories[position]}' in '{owners[position]}' and '{name}'."
                )
            owners[position] = name
            labels[position] = label
    forbidden = [i for i in range(len(categories)) if i not in owners] if unmatched == "raise" else []
    return LabelTable(tuple(classes), labels, tuple(forbidden))


def _full_match(owner: str, task: str, pattern: str, category: str) -> bool:
    try:
        return re.fullmatch(pattern, category) is not None
    except re.error as error:
        raise ValueError(
            f"{owner}: label_maps['{task}'] must hold regular expressions, got {pattern!r}: {error}."
        ) from error
