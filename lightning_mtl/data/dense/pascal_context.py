"""PASCAL-Context with five tasks."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.data.dense.base import DenseOptions, DenseTarget, Reader, TrainAndTestModule
from lightning_mtl.data.dense.edges import label_boundaries
from lightning_mtl.data.dense.files import VOID, LabelTable, read_labels, read_mask, read_normals, read_rgb
from lightning_mtl.data.dense.frames import FrameFiles, find_files, read_list
from lightning_mtl.data.dense.framing import Letterbox, RandomCrop, RandomRescale
from lightning_mtl.data.dense.transforms import JointTransform, RandomHorizontalFlip
from lightning_mtl.data.errors import DataFileError

PascalContextTask = Literal["segmentation", "human_parts", "saliency", "edges", "normals"]

CLASS_NAMES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
PART_NAMES = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")

_PERSON = 15  # number of the class in the annotation of parts, as in PASCAL VOC
_PARTS = {
    "head": ("hair", "head", "mouth", "nose", "lear", "rear", "lebrow", "rebrow", "leye", "reye"),
    "torso": ("neck", "torso"),
    "upper arm": ("luarm", "ruarm"),
    "lower arm": ("lhand", "llarm", "rhand", "rlarm"),
    "upper leg": ("luleg", "ruleg"),
    "lower leg": ("lfoot", "llleg", "rfoot", "rlleg"),
}
_CLASS_OF_PART = {name: PART_NAMES.index(group) for group, names in _PARTS.items() for name in names}

_CONTEXT_IDS = 460  # 459 classes and 0
# Context classes that NYU Depth v2 names as well, and tvmonitor: the network that drew the normals was trained there.
_WITH_NORMALS = (
    *(3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49, 50, 51, 53, 55, 56),
    *(59, 61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101, 104, 105, 107, 111, 113, 115, 122, 124),
    *(135, 141, 142, 143, 146, 150, 154, 157, 158, 159, 165, 172, 174, 181, 183, 184, 191, 193, 195, 197, 199, 202),
    *(213, 215, 216, 219, 220, 223, 225, 228, 230, 232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255, 260, 261),
    *(263, 269, 272, 273, 275, 281, 283, 284, 285, 286, 287, 288, 290, 291, 292, 293, 295, 304, 307, 309, 310, 314),
    *(315, 319, 323, 329, 330, 331, 336, 342, 345, 349, 350, 351, 352, 355, 357, 368, 370, 371, 374, 379, 380, 383),
    *(384, 397, 401, 403, 405, 407, 408, 411, 412, 413, 414, 417, 419, 421, 423, 427, 429, 430, 432, 440, 441, 442),
    *(443, 444, 446, 454, 457),
)


def _load_mat(path: Path, owner: str, variable: str) -> Any:
    from scipy.io import loadmat

    try:
        return loadmat(path, variable_names=[variable])[variable]
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise DataFileError.of(
            owner, path, f"must be a MATLAB file with the variable '{variable}', got: {error!r}", "copy it again"
        ) from error


def read_context(path: Path, owner: str) -> Tensor:
    """Return the ids 0 to 459 of the Context annotation, ``(H, W)`` int64."""
    labels = np.asarray(_load_mat(path, owner, "LabelMap"))
    if labels.ndim != 2 or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= _CONTEXT_IDS:
        raise DataFileError.of(
            owner,
            path,
            f"LabelMap must hold integers in 0..{_CONTEXT_IDS - 1}, (H, W), "
            f"got {labels.dtype} {labels.shape} up to {labels.max(initial=0)}",
            "copy it again",
        )
    return torch.from_numpy(labels.astype(np.int64))


def read_human_parts(path: Path, owner: str) -> Tensor:
    """Return the parts of all people, ``(H, W)`` uint8, or a scalar 255 if no person of the image has parts."""
    annotation = _load_mat(path, owner, "anno")
    parts: np.ndarray[Any, Any] | None = None
    try:
        for thing in annotation[0, 0]["objects"].reshape(-1):
            if int(thing["class_ind"].item()) != _PERSON or thing["parts"].size == 0:
                continue
            if parts is None:
                parts = np.zeros(thing["mask"].shape, np.uint8)
            for part in thing["parts"].reshape(-1):
                name = str(part["part_name"].item())
                if name not in _CLASS_OF_PART:
                    raise DataFileError.of(
                        owner, path, f"parts must be some of {sorted(_CLASS_OF_PART)}, got '{name}'", "copy it again"
                    )
                parts[part["mask"] != 0] = _CLASS_OF_PART[name]
    except (KeyError, IndexError, ValueError, TypeError) as error:
        if isinstance(error, DataFileError):
            raise
        raise DataFileError.of(
            owner, path, f"must hold anno.objects with class_ind, mask and parts, got: {error!r}", "copy it again"
        ) from error
    return torch.tensor(VOID, dtype=torch.uint8) if parts is None else torch.from_numpy(parts)


def combine(sample: dict[str, Tensor]) -> dict[str, Tensor]:
    """Apply the Context annotation to the normals, number its ids anew, and give parts their size."""
    out = dict(sample)
    parts = sample.get("segmentation/parts")
    if parts is not None and parts.ndim == 0:
        out["segmentation/parts"] = parts.expand(sample["image"].shape[-2:]).clone()
    context = out.pop("context", None)
    if context is None:
        return out
    if "normals" in out:
        valid = torch.zeros(_CONTEXT_IDS, dtype=torch.bool)
        valid[list(_WITH_NORMALS)] = True
        out["normals"] = out["normals"] * valid[context]
    there = torch.bincount(context.flatten(), minlength=_CONTEXT_IDS) > 0  # an image has far less than 254 of them
    out["segmentation/context"] = (there.cumsum(0) - 1)[context].to(torch.uint8)
    return out


def _edges(context: Tensor) -> Tensor:
    return label_boundaries(context)[None]


class PascalContextDataModule(TrainAndTestModule):
    """PASCAL-Context: segmentation, human parts, saliency, edges and surface normals of photographs.

    Reads the tree ``PASCAL_MT`` of Maninis et al. and honours its lists ``ImageSets/Context/train.txt`` (4998 images)
    and ``val.txt`` (5105). Needs SciPy for the MATLAB files: ``pip install lightning-mtl[pascal]``.

    Args:
        root: Folder of the data; None takes ``$LIGHTNING_MTL_DATA/pascal_context``.
        tasks: Which targets to return.
        normal_signs: Factors 1 or -1 of the three components of the normals. The release does not say which way its
            axes point; with (1, 1, 1) they are as stored, which training and evaluation on this data set do not notice.
        val_split: ``test`` validates on the frames of ``val.txt``, the habit of the field, which must then not choose a
            model; ``holdout`` sets a part of the training images aside.
        val_fraction: Part of the training images that ``holdout`` sets aside.
        options: See :class:`~lightning_mtl.data.dense.DenseOptions`. ``size`` is (512, 512) by default: photographs are
            padded to it, and shrunk only if they do not fit. With None they keep their sizes, and a batch holds one.

    Shape:
        - image: ``(B, 3, H, W)`` float32, normalised with the ImageNet statistics
        - ``segmentation``: ``(B, H, W)`` int64, 0..20, 255 void
        - ``human_parts``: ``(B, H, W)`` int64, 0 background, 1..6, 255 void
        - ``saliency``: ``(B, 1, H, W)`` float32 in {0, 1}, 255 void
        - ``edges``: ``(B, 1, H, W)`` float32 in {0, 1}, 255 void
        - ``normals``: ``(B, 3, H, W)`` float32 unit vectors, zero vector invalid

    Raises:
        DatasetNotFoundError: If ``root`` or a file of a split is missing.
        DataFileError: When a sample is read: damaged file, size other than the image's, unknown class or part.
        ModuleNotFoundError: If SciPy is missing and a task needs it.
        ValueError: If an argument is out of range.

    Note:
        An image in which no person has parts is unlabelled for ``human_parts``. Normals and saliency are predictions of
        networks (distilled labels); the normals count only on classes that NYU Depth v2 knows. Departs from the
        authors' code in that edges are the pixels on both sides of a boundary of the 459 classes, of the augmented
        annotation, where theirs are thinned to one pixel first.

    References:
        Mottaghi et al. *The Role of Context for Object Detection and Semantic Segmentation in the Wild*. CVPR 2014.
        https://cs.stanford.edu/~roozbeh/pascal-context/. Parts: Chen et al. *Detect What You Can*. CVPR 2014.
        https://arxiv.org/abs/1406.2031. Five tasks: Maninis, Radosavovic, Kokkinos. *Attentive Single-Tasking of
        Multiple Tasks*. CVPR 2019. https://arxiv.org/abs/1904.08918, https://github.com/facebookresearch/astmt.
    """

    folder = "pascal_context"
    remedy = (
        "The archive PASCAL_MT.tgz with all five tasks is linked from https://github.com/facebookresearch/astmt and "
        "https://github.com/SimonVandenhende/Multi-Task-Learning-PyTorch; the page docs/data/pascal_context.md shows "
        "the tree."
    )
    class_names = CLASS_NAMES
    part_names = PART_NAMES
    num_classes: ClassVar[dict[str, int]] = {"segmentation": len(CLASS_NAMES), "human_parts": len(PART_NAMES)}
    run = 1  # photographs, not video

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        tasks: Sequence[PascalContextTask] = ("segmentation", "human_parts", "saliency", "edges", "normals"),
        normal_signs: tuple[int, int, int] = (1, 1, 1),
        val_split: Literal["holdout", "test"] = "test",
        val_fraction: float = 0.1,
        **options: Unpack[DenseOptions],
    ) -> None:
        options.setdefault("size", (512, 512))
        super().__init__(root, tasks, val_split, val_fraction, **options)
        if len(normal_signs) != 3 or not set(normal_signs) <= {1, -1}:
            raise ValueError(f"{self.owner}: normal_signs must be three of 1 and -1, got {tuple(normal_signs)}.")
        if {"human_parts", "edges", "normals"} & set(tasks) and importlib.util.find_spec("scipy") is None:
            raise ModuleNotFoundError(f"{self.owner}: MATLAB files need `pip install lightning-mtl[pascal]`.")
        self.normal_signs = tuple(normal_signs)

    def known_targets(self) -> dict[str, DenseTarget]:
        """Return the tasks of the data set."""
        return {
            "segmentation": DenseTarget("segmentation", "segmentation"),
            "human_parts": DenseTarget("segmentation", "segmentation/parts"),
            "saliency": DenseTarget("saliency", "saliency"),
            "edges": DenseTarget("edges", "segmentation/context", _edges),
            "normals": DenseTarget("normals", "normals"),
        }

    def part(self, root: Path, train: bool) -> FrameFiles:
        """Return the files of a list."""
        names = read_list(self.owner, root, f"ImageSets/Context/{'train' if train else 'val'}.txt", self.remedy)
        places = {"image": [("JPEGImages", ".jpg")]}
        if "segmentation" in self.tasks:
            places["segmentation"] = [("semseg/VOC12", ".png"), ("semseg/pascal-context", ".png")]
        if "human_parts" in self.tasks:
            places["segmentation/parts"] = [("human_parts", ".mat")]
        if "saliency" in self.tasks:
            places["saliency"] = [("sal_distill", ".png")]
        if "normals" in self.tasks:
            places["normals"] = [("normals_distill", ".png")]
        if {"edges", "normals"} & set(self.tasks):
            places["context"] = [("pascal-context/trainval", ".mat")]
        return find_files(self.owner, root, names, places, self.remedy)

    def readers(self, root: Path) -> dict[str, Reader]:
        """Return how the files are read."""
        table = LabelTable({**{i: i for i in range(len(CLASS_NAMES))}, VOID: VOID})
        return {
            "image": partial(read_rgb, owner=self.owner),
            "segmentation": partial(read_labels, owner=self.owner, table=table),
            "segmentation/parts": partial(read_human_parts, owner=self.owner),
            "saliency": partial(read_mask, owner=self.owner),
            "normals": partial(read_normals, owner=self.owner, signs=self.normal_signs),
            "context": partial(read_context, owner=self.owner),
        }

    def prepare(self) -> Callable[[dict[str, Tensor]], dict[str, Tensor]] | None:
        """Return what joins the files of a frame."""
        return combine

    def augmentation(self) -> list[JointTransform]:
        """Return what ``augment=True`` does: random scale, random crop and mirror image."""
        crop = [] if self.size is None else [RandomCrop(self.size)]
        return [RandomRescale(0.5, 2.0), *crop, RandomHorizontalFlip()]

    def framing(self) -> list[JointTransform]:
        """Return what brings a photograph to the size of the batch."""
        return [] if self.size is None else [Letterbox(self.size)]
