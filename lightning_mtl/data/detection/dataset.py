"""A detection data set as samples of image and targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.tv_tensors import BoundingBoxes

from lightning_mtl.data.base import Sample
from lightning_mtl.data.boxes import box_area
from lightning_mtl.data.dense.transforms import JointTransform, Normalize
from lightning_mtl.data.detection.labels import DROPPED, IGNORED, LabelTable
from lightning_mtl.data.detection.masks import CROWD, paint_masks
from lightning_mtl.data.detection.records import Records
from lightning_mtl.data.errors import DataFileError
from lightning_mtl.data.images import decode_image
from lightning_mtl.data.samplers import sample_generator

TaskKind = Literal["boxes", "segmentation"]


class DetectionDataset(Dataset[Sample]):
    """Images with boxes, read from disk.

    Args:
        owner: Name of the data module, for errors.
        records: Images and boxes.
        images: Rows of the images that belong to the split.
        tasks: Task -> kind of its target.
        tables: Task -> its classes.
        transform: Joint transform of 8-bit image, boxes and segmentation.

    Shape:
        - image ``(3, H, W)`` float32, normalised with the ImageNet statistics
        - target of kind ``boxes``: a dict, see :class:`DetectionDataModule`
        - target of kind ``segmentation``: ``(H, W)`` int64, 0 background, 1..C, 255 crowd or ignored
    """

    def __init__(
        self,
        owner: str,
        records: Records,
        images: Tensor,
        tasks: Mapping[str, TaskKind],
        tables: Mapping[str, LabelTable],
        transform: JointTransform,
    ) -> None:
        self.owner = owner
        self.records = records
        self.images = images
        self.tasks = dict(tasks)
        self.tables = dict(tables)
        self.transform = transform
        self._normalize = Normalize()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        """Return image and targets, augmented with the random stream of the index."""
        records, row = self.records, int(self.images[index])
        path = records.folder / records.files[row]
        image = decode_image(self.owner, path)
        height, width = image.shape[-2:]
        if [height, width] != records.sizes[row].tolist():
            expected = tuple(records.sizes[row].tolist())
            raise DataFileError.of(
                self.owner,
                path,
                f"height and width must be {expected} as in '{records.source}', got {(height, width)}",
                "correct the file, or save the image upright if a viewer turns it",
            )
        rows = torch.arange(int(records.starts[row]), int(records.starts[row + 1]))
        boxes = records.boxes[rows]
        sample: dict[str, Any] = {
            "image": image,
            "boxes": BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
            "rows": rows,
            "crowd": records.crowd[rows],
        }
        if "segmentation" in self.tasks.values():
            sample["segmentation"] = self._painted(rows, (height, width))
        sample = self.transform(sample, sample_generator(index))
        targets = {
            task: self._boxes(task, sample, row) if kind == "boxes" else self._segmentation(task, sample)
            for task, kind in self.tasks.items()
        }
        return self._normalize.normalized(sample["image"]), targets

    def _painted(self, rows: Tensor, size: tuple[int, int]) -> Tensor:
        records = self.records
        masks = [records.masks[i] for i in rows.tolist()]
        try:
            return paint_masks(masks, records.category[rows] + 1, records.crowd[rows], size)
        except ValueError as error:
            position, problem = str(error).split(": ", 1)
            name = f"mask of annotation {int(records.annotation_ids[rows[int(position)]])}"
            raise DataFileError.of(
                self.owner, records.source, f"{name}: {problem}", "export the masks again"
            ) from error

    def _segmentation(self, task: str, sample: Mapping[str, Any]) -> Tensor:
        of_code = torch.full((256,), CROWD, dtype=torch.int64)
        of_code[0] = 0
        labels = self.tables[task].labels
        of_code[1 : len(labels) + 1] = torch.where(labels == IGNORED, CROWD, labels)
        return of_code[sample["segmentation"].long()]

    def _boxes(self, task: str, sample: Mapping[str, Any], row: int) -> dict[str, Tensor]:
        rows, table = sample["rows"], self.tables[task]
        boxes = sample["boxes"].as_subclass(Tensor)
        crowd, labels = sample["crowd"], table.labels[self.records.category[rows]]
        area = box_area(boxes) * self.records.fill[rows]
        known = labels > DROPPED
        if not known.all():
            ignored = (labels == IGNORED).nonzero()[:, 0]
            classes = len(table.names)  # whichever class the unlabelled object has, it is not to be judged
            chosen = torch.cat([known.nonzero()[:, 0], ignored.repeat_interleave(classes)])
            crowd = torch.cat([crowd[known], torch.ones(len(ignored) * classes, dtype=torch.bool)])
            labels = torch.cat([labels[known], torch.arange(1, classes + 1).repeat(len(ignored))])
            boxes, area = boxes[chosen], area[chosen]
        return {
            "boxes": boxes,
            "labels": labels,
            "iscrowd": crowd,
            "area": area,
            "size": torch.tensor(sample["image"].shape[-2:]),
            "image_id": self.records.image_ids[row],
        }


def join_samples(samples: Sequence[Sample], tasks: Mapping[str, TaskKind], size: tuple[int, int] | None) -> Any:
    """Join samples into a batch, images padded on the right and below.

    Args:
        samples: Images ``(3, h, w)`` and their targets.
        tasks: Task -> kind of its target.
        size: Height and width of the batch; None takes the largest of its images.

    Returns:
        Images ``(B, 3, H, W)``, padded with 0, and targets: lists of boxes, class maps padded with 255.
    """
    height, width = size or (max(x.shape[1] for x, _ in samples), max(x.shape[2] for x, _ in samples))
    images = torch.zeros(len(samples), 3, height, width)
    for into, (image, _) in zip(images, samples, strict=True):
        into[:, : image.shape[1], : image.shape[2]] = image
    targets: dict[str, Any] = {}
    for task, kind in tasks.items():
        values = [target[task] for _, target in samples]
        if kind == "segmentation":
            maps = torch.full((len(samples), height, width), CROWD, dtype=torch.int64)
            for into, value in zip(maps, values, strict=True):
                into[: value.shape[0], : value.shape[1]] = value
            targets[task] = maps
        else:
            targets[task] = values
    return images, targets
