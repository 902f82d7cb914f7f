"""Two small digits in one image, with noisy training labels: a classification problem that takes seconds to train."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from lightning_mtl.data.base import Split
from lightning_mtl.data.samplers import mix_seed
from lightning_mtl.data.table import Table, TableDataModule

_STREAMS: dict[Split, int] = {"train": 0, "val": 1, "test": 2, "predict": 2}

_FONT = (
    "01110 10001 10011 10101 11001 10001 01110",
    "00100 01100 00100 00100 00100 00100 01110",
    "01110 10001 00001 00010 00100 01000 11111",
    "11111 00010 00100 00010 00001 10001 01110",
    "00010 00110 01010 10010 11111 00010 00010",
    "11111 10000 11110 00001 00001 10001 01110",
    "00110 01000 10000 11110 10001 10001 01110",
    "11111 00001 00010 00100 01000 01000 01000",
    "01110 10001 10001 01110 10001 10001 01110",
    "01110 10001 10001 01111 00001 00010 01100",
)
_HEIGHT, _WIDTH = 7, 5


def digit_glyphs() -> Tensor:
    """Return the digits 0 to 9 as bitmaps of five by seven pixels, ``(10, 7, 5)`` float32 in {0, 1}."""
    rows = [[[float(pixel) for pixel in row] for row in glyph.split()] for glyph in _FONT]
    return torch.tensor(rows)


class TwoGlyphDataModule(TableDataModule):
    """Images of two bitmap digits; task ``left`` reads the upper left one, task ``right`` the lower right one.

    Inputs are ``(B, 1, 16, 16)`` float32; both targets are ``(B,)`` int64 in 0..9, -100 without label. The digits do
    not overlap. Each is moved by up to one pixel and has its own brightness between 0.7 and 1.3; Gaussian noise lies
    over all. Some training labels are wrong; those of validation and test are right.

    Args:
        num_train: Number of training images.
        num_val: Number of validation images.
        num_test: Number of test images, which are the prediction images too.
        noise: Standard deviation of the noise of a pixel.
        label_noise: Fraction of the training labels of each task that are replaced by a random digit.
        batch_size: Samples per batch and process; None takes the whole training set.
        num_workers: Processes that load data. The images are in memory.
        pin_memory: Whether batches are copied to pinned memory; None does so when CUDA is available.
        persistent_workers: Whether workers outlive an epoch; None does so when there are any.
        seed: Seed of images, wrong labels and order.
        drop_last: Leave out the last training batch when it is smaller than the others.
        label_fraction: Task -> fraction of the training images that keep this task's label.

    Raises:
        ValueError: If a number is out of range.

    Note:
        ``round(label_noise * num_train)`` labels a task are drawn anew, so about a tenth of these are right by chance.

    Example:
        >>> data = TwoGlyphDataModule(num_train=200, num_val=100)
        >>> data.setup("fit")
        >>> images, targets = next(iter(data.train_dataloader()))
        >>> images.shape, targets["left"].shape
        (torch.Size([100, 1, 16, 16]), torch.Size([100]))
    """

    num_classes = 10
    tasks = ("left", "right")
    size = 16

    def __init__(
        self,
        num_train: int = 1200,
        num_val: int = 500,
        num_test: int = 2000,
        noise: float = 0.2,
        label_noise: float = 0.3,
        *,
        batch_size: int | None = 100,
        num_workers: int | None = 0,
        pin_memory: bool | None = None,
        persistent_workers: bool | None = None,
        seed: int = 0,
        drop_last: bool = True,
        label_fraction: dict[str, float] | None = None,
    ) -> None:
        if noise < 0:
            raise ValueError(f"TwoGlyphDataModule: noise must not be negative, got {noise}.")
        if not 0 <= label_noise <= 1:
            raise ValueError(f"TwoGlyphDataModule: label_noise must be in [0, 1], got {label_noise}.")
        super().__init__(
            num_train,
            batch_size=batch_size,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=persistent_workers,
            seed=seed,
            drop_last=drop_last,
            label_fraction=label_fraction,
        )
        self.noise = noise
        self.label_noise = label_noise
        self.lengths: dict[Split, int] = {"train": num_train, "val": num_val, "test": num_test, "predict": num_test}

    @property
    def ignore_values(self) -> dict[str, float]:
        """Task -> value of a target without label."""
        return dict.fromkeys(self.tasks, -100.0)

    def make_dataset(self, split: Split) -> Table:
        """Return the images of a split."""
        length = self.lengths[split]
        stream = Generator().manual_seed(mix_seed(self.seed, _STREAMS[split]))
        glyphs = digit_glyphs()
        images = self.noise * torch.randn(length, self.size, self.size, generator=stream)
        targets = {}
        for task, (top, left) in zip(self.tasks, ((0, 0), (6, 8)), strict=True):
            digits = torch.randint(self.num_classes, (length,), generator=stream)
            shifts = torch.randint(2, (length, 2), generator=stream)
            brightness = 0.7 + 0.6 * torch.rand(length, generator=stream)
            for image, glyph, shift, factor in zip(images, glyphs[digits], shifts.tolist(), brightness, strict=True):
                row, column = top + shift[0], left + shift[1]
                image[row : row + _HEIGHT, column : column + _WIDTH] += factor * glyph
            if split == "train":
                wrong = torch.randperm(length, generator=stream)[: round(self.label_noise * length)]
                digits[wrong] = torch.randint(self.num_classes, (len(wrong),), generator=stream)
            targets[task] = digits
        return Table(images.unsqueeze(1), targets)
