"""Images with three factors, to see whether a network recombines what it learned of each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from lightning_mtl.data.base import Split
from lightning_mtl.data.compositional import CompositionalSplit, CompositionRegistry, Triplet
from lightning_mtl.data.samplers import mix_seed
from lightning_mtl.data.table import Table, TableDataModule

_STREAMS: dict[Split, int] = {"train": 0, "val": 1, "test": 2, "predict": 2}
_SIZE = 16
_PERIOD = 8
_AMPLITUDE = 0.35
_BRIGHTNESS = 1.5
_BLUR_GAIN = 2.0
_RING = ((1.0, 1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, 1.0))
_PLUS = ((0.0, 1.0, 0.0), (1.0, 1.0, 1.0), (0.0, 1.0, 0.0))

MODALITIES = ("plain", "inverted", "blurred")
AREAS = ("vertical", "horizontal", "diagonal")
QUESTIONS = ("count", "shape", "half")

FactorName = Literal["modality", "area", "task"]


def factor_registry() -> CompositionRegistry:
    """Return the 27 data sets of :class:`FactorImagesDataModule`, ``"<modality>-<area>-<task>"``."""
    registry = CompositionRegistry()
    for values in itertools.product(MODALITIES, AREAS, QUESTIONS):
        registry.add("-".join(values), **Triplet(*values)._asdict())
    return registry


class FactorImagesDataModule(TableDataModule):
    """Grey images described by (modality, area, task), with a yes-or-no question about each.

    Every image of 16 x 16 pixels shows one or two lesions of 3 x 3 pixels, rings or plus signs (1.5, on stripes between
    -0.35 and 0.35), in the upper or the lower half. The task asks for their ``count``, their ``shape``, or the
    ``half``; the area is the direction of the stripes behind them, ``vertical``, ``horizontal`` or ``diagonal``; the
    modality shows the image ``plain``, ``inverted``, or ``blurred`` (twice the mean of 3 x 3 pixels). That makes 27
    data sets. Without a target all of them are trained and evaluated; with a target the training split is the pool of
    the condition (:meth:`CompositionalSplit.pool`), and the others hold images of the target alone.

    Batches are ``({"image": (B, 1, 16, 16), "task": (B,)}, {"answer": (B,)})``: which question is asked is an input, as
    for a model that reads it, and one output answers all. ``group_by`` divides the answers into one task for every
    value of a factor instead, each with its own head, loss and metrics; the others' rows hold -100.

    Args:
        target: Name of the data set that is held out, for example ``"blurred-vertical-shape"``; None holds out none.
        condition: Which of the others are trained on: ``"all"``, ``"related"``, ``"unrelated"``,
            ``"without:<factor>"`` or ``"random:<factor>"``.
        allow_shared: Numbers of factors that a related data set may share with the target.
        num_train_each: Number of training images of a data set.
        num_train: Number of training images in all, spread evenly over the pool; None takes all.
        num_eval_each: Number of images of a data set in the validation and in the test split.
        noise: Standard deviation of the noise of a pixel.
        group_by: Factor whose values are tasks; None has the one task ``answer``.
        batch_size: Samples per batch and process; None takes the whole training set.
        num_workers: Processes that load data. The images are in memory.
        pin_memory: Whether batches are copied to pinned memory; None does so when CUDA is available.
        persistent_workers: Whether workers outlive an epoch; None does so when there are any.
        seed: Seed of images, of a random pool, and of the order.
        drop_last: Leave out the last training batch when it is smaller than the others.
        label_fraction: Task -> fraction of the training images that keep this task's label.

    Raises:
        ValueError: If a number is out of range, or the target or the condition is unknown.

    Note:
        The first images of a data set are the same in every pool and for every number of images.

    Example:
        >>> data = FactorImagesDataModule("blurred-vertical-shape", "without:area", num_train_each=10, num_eval_each=8)
        >>> data.setup("fit")
        >>> inputs, targets = next(iter(data.train_dataloader()))
        >>> inputs["image"].shape, inputs["task"].shape, targets["answer"].shape, len(data.pool)
        (torch.Size([64, 1, 16, 16]), torch.Size([64]), torch.Size([64]), 16)

    References:
        Cai, Chen, Wang, Wang, Deng, Song, Chen, Zhang, Wang. *Exploring Compositional Generalization of
        Multimodal LLMs for Medical Imaging*. ACL 2025.
        https://arxiv.org/abs/2412.20070 (the question; the images are this package's).
    """

    num_classes = 2
    size = _SIZE

    def __init__(
        self,
        target: str | None = None,
        condition: str = "all",
        allow_shared: Sequence[int] = (1,),
        num_train_each: int = 150,
        num_train: int | None = None,
        num_eval_each: int = 400,
        noise: float = 0.1,
        group_by: FactorName | None = None,
        *,
        batch_size: int | None = 64,
        num_workers: int | None = 0,
        pin_memory: bool | None = None,
        persistent_workers: bool | None = None,
        seed: int = 0,
        drop_last: bool = True,
        label_fraction: dict[str, float] | None = None,
    ) -> None:
        if noise < 0:
            raise ValueError(f"FactorImagesDataModule: noise must not be negative, got {noise}.")
        if min(num_train_each, num_eval_each) < 1:
            raise ValueError(
                "FactorImagesDataModule: num_train_each and num_eval_each must be positive, got "
                f"{num_train_each} and {num_eval_each}."
            )
        if group_by is not None and group_by not in Triplet._fields:
            raise ValueError(f"FactorImagesDataModule: group_by must be one of {Triplet._fields}, got {group_by!r}.")
        self.registry = factor_registry()
        if target is None:
            self.pool = list(self.registry)
        else:
            self.pool = CompositionalSplit(self.registry, target, allow_shared).pool(condition, seed)
        self.target = target
        total = len(self.pool) * num_train_each if num_train is None else num_train
        if not 0 < total <= len(self.pool) * num_train_each:
            raise ValueError(
                f"FactorImagesDataModule: num_train must be between 1 and {len(self.pool)} data sets times "
                f"{num_train_each} images, got {total}."
            )
        super().__init__(
            total,
            batch_size=batch_size,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=persistent_workers,
            seed=seed,
            drop_last=drop_last,
            label_fraction=label_fraction,
        )
        base, more = divmod(total, len(self.pool))
        self.train_counts = {name: base + (place < more) for place, name in enumerate(self.pool)}
        self.num_train_each = num_train_each
        self.num_eval_each = num_eval_each
        self.noise = noise
        self.group_by = group_by

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        groups = {"modality": MODALITIES, "area": AREAS, "task": QUESTIONS}
        return ("answer",) if self.group_by is None else groups[self.group_by]

    @property
    def ignore_values(self) -> dict[str, float]:
        """Task -> value of a target without label."""
        return dict.fromkeys(self.tasks, -100.0)

    def make_dataset(self, split: Split) -> Table:
        """Return the images of a split."""
        if split == "train":
            return self.images(self.train_counts, "train")
        return self.images(
            dict.fromkeys(self.registry if self.target is None else [self.target], self.num_eval_each), split
        )

    def images(self, counts: Mapping[str, int], split: Split = "train") -> Table:
        """Return the first images of some of the data sets.

        Args:
            counts: Data set -> number of images, at most those of the split.
            split: Whose images.

        Raises:
            ValueError: If a data set is unknown or a number too large.
        """
        most = self.num_train_each if split == "train" else self.num_eval_each
        if too_many := {name: count for name, count in counts.items() if not 0 < count <= most}:
            raise ValueError(f"FactorImagesDataModule: counts must be from 1 to {most}, got {too_many}.")
        order = list(self.registry)
        images, questions, answers, groups = [], [], [], []
        for name, count in counts.items():
            values = self.registry.values(name)
            stream = Generator().manual_seed(mix_seed(self.seed, _STREAMS[split], order.index(name)))
            drawn, found = factor_images(Triplet(**values), most, self.noise, stream)
            images.append(drawn[:count])
            answers.append(found[:count])
            questions += [QUESTIONS.index(values["task"])] * count
            groups += ["answer" if self.group_by is None else values[self.group_by]] * count
        joined = torch.cat(answers)
        targets = {}
        for task in self.tasks:
            own = torch.tensor([group == task for group in groups])
            targets[task] = torch.where(own, joined, -100)
        return Table({"image": torch.cat(images), "task": torch.tensor(questions)}, targets)


def factor_images(triplet: Triplet, count: int, noise: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return images of one combination of factors and the answers to its question.

    Args:
        triplet: One of :data:`MODALITIES`, of :data:`AREAS` and of :data:`QUESTIONS`.
        count: Number of images.
        noise: Standard deviation of the noise of a pixel.
        generator: Source of all randomness.

    Shape:
        - images ``(count, 1, 16, 16)`` float32; answers ``(count,)`` int64: 1 for two lesions, a plus, the lower half.
    """
    rows, columns = torch.meshgrid(torch.arange(_SIZE), torch.arange(_SIZE), indexing="ij")
    along = {"vertical": columns, "horizontal": rows, "diagonal": rows + columns}[triplet.area]
    phase = _PERIOD * torch.rand(count, 1, 1, generator=generator)
    images = _AMPLITUDE * torch.sin(2 * math.pi * (along + phase) / _PERIOD)
    two, plus, lower = (torch.randint(2, (count,), generator=generator) for _ in range(3))
    tops = torch.randint(6, (count, 2), generator=generator) + 8 * lower[:, None]
    lefts = torch.randint(6, (count, 2), generator=generator)
    first_left = torch.randint(2, (count,), generator=generator)  # whether the only lesion is in the left half
    shapes = torch.tensor([_RING, _PLUS]) > 0
    for number in range(count):
        shape = shapes[plus[number]]
        for side in range(2):
            if two[number] or side == first_left[number]:
                top, left = int(tops[number, side]), int(lefts[number, side]) + 8 * side
                images[number, top : top + 3, left : left + 3].masked_fill_(shape, _BRIGHTNESS)
    images = images.unsqueeze(1)
    if triplet.modality == "inverted":
        images = -images
    elif triplet.modality == "blurred":
        images = _BLUR_GAIN * F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = images + noise * torch.randn(images.shape, generator=generator)
    return images, {"count": two, "shape": plus, "half": lower}[triplet.task]
