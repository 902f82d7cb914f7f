"""The targets of detection tasks: what is allowed, and what is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class BoxTarget(NamedTuple):
    """The annotation of one image.

    Attributes:
        boxes: Boxes of single objects ``(n, 4)``, float32.
        labels: Their classes ``(n,)``, from 0 on: the background has no number here.
        crowds: Boxes of regions that hold many objects ``(m, 4)``.
    """

    boxes: Tensor
    labels: Tensor
    crowds: Tensor


def centre_inside(boxes: Tensor, regions: Tensor) -> Tensor:
    """Return which boxes ``(n, 4)`` have their centre inside of some region ``(m, 4)``, ``(n,)``."""
    centre = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
    return ((centre > regions[:, :2]) & (centre < regions[:, 2:])).all(2).any(1)


class TargetCheck:
    """Refuse wrong targets with a message that says where, and sort out the crowds of right ones.

    Forms and types are checked on every call. Values are checked on every call for targets on the CPU; on an
    accelerator, where reading a value waits for the device, only on the first ten calls.

    Args:
        owner: Name of the task, for messages.
        num_classes: Number of classes without background.
    """

    checked_calls = 10

    def __init__(self, owner: str, num_classes: int) -> None:
        self.owner = owner
        self.num_classes = num_classes
        self._left = self.checked_calls

    def __call__(self, target: Any, batch: int) -> list[BoxTarget | None]:
        """Return the annotation of every image, None where there is none.

        Args:
            target: The target of a batch.
            batch: Number of images in the batch.

        Raises:
            ValueError: If the form or a value is wrong.
            TypeError: If a type is wrong.
        """
        if not isinstance(target, Sequence):
            raise TypeError(
                f"{self.owner}: target must be a list with one mapping per image, got {type(target).__name__}; collate "
                "boxes into a list."
            )
        if len(target) != batch:
            raise ValueError(f"{self.owner}: target must have one entry per image, got {len(target)} for {batch}.")
        found = [None if entry is None else self._entry(i, entry) for i, entry in enumerate(target)]
        entries = [(i, entry) for i, entry in enumerate(target) if entry is not None]
        if entries and self._reads_values(entries[0][1]["boxes"]):
            self._check_values(entries)
        return found

    def _entry(self, i: int, entry: Any) -> BoxTarget:
        if not isinstance(entry, Mapping) or not {"boxes", "labels"} <= set(entry):
            got = list(entry) if isinstance(entry, Mapping) else type(entry).__name__
            raise TypeError(
                f"{self.owner}: target[{i}] must be None or a mapping with 'boxes' and 'labels', got {got}."
            )
        boxes, labels, crowd = entry["boxes"], entry["labels"], entry.get("iscrowd")
        for key, value in (("boxes", boxes), ("labels", labels), ("iscrowd", crowd)):
            if value is not None and not isinstance(value, Tensor):
                raise TypeError(f"{self.owner}: target[{i}]['{key}'] must be a tensor, got {type(value).__name__}.")
        if not boxes.is_floating_point():
            raise TypeError(f"{self.owner}: target[{i}]['boxes'] must be float32, got {boxes.dtype}; call .float().")
        if labels.dtype != torch.int64:
            raise TypeError(f"{self.owner}: target[{i}]['labels'] must be int64, got {labels.dtype}; call .long().")
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(
                f"{self.owner}: target[{i}]['boxes'] must have the shape (n, 4), got {tuple(boxes.shape)}; an image "
                "without objects has (0, 4)."
            )
        number = len(boxes)
        for key, value in (("labels", labels), ("iscrowd", crowd)):
            if value is not None and tuple(value.shape) != (number,):
                raise ValueError(
                    f"{self.owner}: target[{i}]['{key}'] must have the shape ({number},), one per box, got "
                    f"{tuple(value.shape)}."
                )
        if crowd is None:
            return BoxTarget(boxes.float(), labels - 1, boxes.new_zeros((0, 4), dtype=torch.float32))
        many = crowd.bool()
        return BoxTarget(boxes[~many].float(), labels[~many] - 1, boxes[many].float())

    def _reads_values(self, tensor: Tensor) -> bool:
        if tensor.device.type == "cpu":
            return True
        self._left -= 1
        return self._left >= 0

    def _check_values(self, entries: Sequence[tuple[int, Mapping[str, Tensor]]]) -> None:
        boxes = torch.cat([entry["boxes"] for _, entry in entries])
        labels = torch.cat([entry["labels"] for _, entry in entries])
        proper = boxes.isfinite().all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        known = (labels >= 1) & (labels <= self.num_classes)
        if bool((proper & known).all()):
            return
        wrong = int((~(proper & known)).nonzero()[0, 0])
        where = [(i, row) for i, entry in entries for row in range(len(entry["boxes"]))][wrong]
        if not proper[wrong]:
            raise ValueError(
                f"{self.owner}: target[{where[0]}]['boxes'] must hold finite x1 < x2 and y1 < y2, got "
                f"{boxes[wrong].tolist()} in row {where[1]}; convert from x, y, width, height and drop empty boxes."
            )
        raise ValueError(
            f"{self.owner}: target[{where[0]}]['labels'] must hold labels in 1..{self.num_classes}, got "
            f"{labels[wrong].item()} in row {where[1]}; 0 is the background."
        )
